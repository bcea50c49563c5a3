"""The kinds of objects: which the mesh reads and with which fields, and which it only knows.

Floor 0: tables, after Kubernetes 1.34, Gateway API 1.4 and Istio 1.28. What is listed as unused is
accepted, and reported once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ambient.model.kinds_pod import POD_SPEC
from ambient.model.schema import (
    LABEL,
    LABEL_FORM,
    SUBDOMAIN,
    SUBDOMAIN_FORM,
    Check,
    anything,
    choice,
    flag,
    labels,
    list_of,
    map_of,
    no_namespace,
    number,
    port,
    port_or_name,
    port_text,
    struct,
    text,
    text_map,
)

WAYPOINT_CLASS = "istio-waypoint"

_METADATA: dict[str, Check] = {"labels": labels, "annotations": text_map}
_BOOKKEEPING = (
    "creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName generation "
    "managedFields ownerReferences resourceVersion selfLink uid"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What is known about one kind.

    Attributes:
        group: Its API group, "" for core.
        versions: Of the group; empty accepts any.
        check: For the whole object; None if the kind is known and not used.
    """

    name: str
    group: str
    versions: tuple[str, ...] = ()
    namespaced: bool = True
    check: Check | None = None

    def api_versions(self) -> Iterator[str]:
        """The full ``apiVersion`` texts that it goes by."""
        prefix = f"{self.group}/" if self.group else ""
        return (f"{prefix}{version}" for version in self.versions or ("v1",))

    def accepts(self, api_version: str) -> bool:
        """Whether *api_version* is one of its."""
        group, _, version = api_version.rpartition("/")
        return group == self.group and (not self.versions or version in self.versions)


def _object(
    spec: Check | None = None,
    *,
    needs_spec: bool = True,
    is_label: bool = False,
    namespaced: bool = True,
    unused: str = "",
) -> Check:
    name = text(LABEL, LABEL_FORM) if is_label else text(SUBDOMAIN, SUBDOMAIN_FORM)
    namespace = text(LABEL, LABEL_FORM) if namespaced else no_namespace
    metadata = struct(
        {"name": name, "namespace": namespace, **_METADATA}, unused=_BOOKKEEPING, required=("name",)
    )
    fields = {"apiVersion": text(), "kind": text(), "metadata": metadata}
    required = ["metadata"]
    if spec is not None:
        fields["spec"] = spec
        required += ["spec"] if needs_spec else []
    return struct(fields, unused=f"status {unused}", required=required)


_REQUIREMENT = struct(
    {
        "key": text(),
        "operator": choice("In", "NotIn", "Exists", "DoesNotExist"),
        "values": list_of(text()),
    },
    required=("key", "operator"),
)
_LABEL_SELECTOR = struct({"matchLabels": labels, "matchExpressions": list_of(_REQUIREMENT)})
_TEMPLATE = struct(
    # The name of a template means nothing; Kubernetes accepts one.
    {
        "metadata": struct(_METADATA, unused=f"name namespace {_BOOKKEEPING}"),
        "spec": POD_SPEC,
    },
    required=("spec",),
)
_DEPLOYMENT = struct(
    {"replicas": number(0, 1000), "selector": _LABEL_SELECTOR, "template": _TEMPLATE},
    unused="minReadySeconds paused progressDeadlineSeconds revisionHistoryLimit strategy",
    required=("selector", "template"),
)

_SERVICE_PORT = struct(
    {
        "name": text(LABEL, LABEL_FORM),
        "port": port,
        "targetPort": port_or_name,
        "protocol": choice("TCP", "UDP", "SCTP"),
        "appProtocol": text(),
    },
    unused="nodePort",
    required=("port",),
)
_SERVICE = struct(
    {
        "selector": text_map,
        "ports": list_of(_SERVICE_PORT, unique="name"),
        "clusterIP": text(),
        "clusterIPs": list_of(text()),
        "type": choice("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
        "publishNotReadyAddresses": flag,
        "ipFamilies": list_of(choice("IPv4", "IPv6")),
        "ipFamilyPolicy": choice("SingleStack", "PreferDualStack", "RequireDualStack"),
    },
    unused=(
        "allocateLoadBalancerNodePorts externalIPs externalName externalTrafficPolicy healthCheckNodePort "
        "internalTrafficPolicy loadBalancerClass loadBalancerIP "
        "loadBalancerSourceRanges sessionAffinity sessionAffinityConfig topologyKeys trafficDistribution"
    ),
)

_LISTENER = struct(
    {"name": text(), "port": port, "protocol": text(), "allowedRoutes": anything},
    unused="hostname tls",
    required=("name", "port", "protocol"),
)
_GATEWAY = struct(
    {"gatewayClassName": text(), "listeners": list_of(_LISTENER, unique="name")},
    unused="addresses allowedListeners backendTLS defaultScope infrastructure tls",
    required=("gatewayClassName",),
)

_TEXTS = list_of(text())
_SOURCE = (
    *("principals", "notPrincipals", "namespaces", "notNamespaces", "serviceAccounts", "notServiceAccounts"),
    *("ipBlocks", "notIpBlocks", "remoteIpBlocks", "notRemoteIpBlocks"),
    *("requestPrincipals", "notRequestPrincipals"),
)
_HTTP_OPERATION = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"]
_OPERATION = struct(
    dict.fromkeys(_HTTP_OPERATION, _TEXTS) | dict.fromkeys(("ports", "notPorts"), list_of(port_text))
)
_WHEN = struct({"key": text(), "values": _TEXTS, "notValues": _TEXTS}, required=("key",))
_RULE = struct(
    {
        "from": list_of(struct({"source": struct(dict.fromkeys(_SOURCE, _TEXTS))}, required=("source",))),
        "to": list_of(struct({"operation": _OPERATION}, required=("operation",))),
        "when": list_of(_WHEN),
    }
)
_WORKLOAD_SELECTOR = struct({"matchLabels": text_map})
_AUTHORIZATION_POLICY = struct(
    {
        "selector": _WORKLOAD_SELECTOR,
        "action": choice("ALLOW", "DENY", "AUDIT", "CUSTOM"),
        "rules": list_of(_RULE),
        "provider": anything,
        "targetRef": anything,
        "targetRefs": anything,
    }
)
_MTLS = struct({"mode": choice("UNSET", "DISABLE", "PERMISSIVE", "STRICT")})
_PEER_AUTHENTICATION = struct(
    {"selector": _WORKLOAD_SELECTOR, "mtls": _MTLS, "portLevelMtls": map_of(port_text, _MTLS)}
)

# Read, never enforced: ``ambient check --pre`` says whether HBONE would get through.
_POLICY_PORT = struct(
    {"protocol": choice("TCP", "UDP", "SCTP"), "port": port_or_name, "endPort": port},
)
_POLICY_PEER = struct(
    {
        "podSelector": _LABEL_SELECTOR,
        "namespaceSelector": _LABEL_SELECTOR,
        "ipBlock": struct({"cidr": text(), "except": list_of(text())}, required=("cidr",)),
    }
)


def _policy_rule(side: str) -> Check:
    return struct({"ports": list_of(_POLICY_PORT), side: list_of(_POLICY_PEER)})


_NETWORK_POLICY = struct(
    {
        "podSelector": _LABEL_SELECTOR,
        "policyTypes": list_of(choice("Ingress", "Egress")),
        "ingress": list_of(_policy_rule("from")),
        "egress": list_of(_policy_rule("to")),
    }
)

_ISTIO = ("v1", "v1beta1")
_USED = (
    Kind(
        "Namespace",
        "",
        ("v1",),
        namespaced=False,
        check=_object(struct({}, unused="finalizers"), needs_spec=False, is_label=True, namespaced=False),
    ),
    Kind(
        "ServiceAccount",
        "",
        ("v1",),
        check=_object(unused="automountServiceAccountToken imagePullSecrets secrets"),
    ),
    Kind("Service", "", ("v1",), check=_object(_SERVICE, is_label=True)),
    Kind("Pod", "", ("v1",), check=_object(POD_SPEC)),
    Kind("Deployment", "apps", ("v1",), check=_object(_DEPLOYMENT)),
    Kind("Gateway", "gateway.networking.k8s.io", ("v1", "v1beta1"), check=_object(_GATEWAY)),
    Kind(
        "AuthorizationPolicy",
        "security.istio.io",
        _ISTIO,
        check=_object(_AUTHORIZATION_POLICY, needs_spec=False),
    ),
    Kind(
        "PeerAuthentication",
        "security.istio.io",
        _ISTIO,
        check=_object(_PEER_AUTHENTICATION, needs_spec=False),
    ),
    Kind("NetworkPolicy", "networking.k8s.io", ("v1",), check=_object(_NETWORK_POLICY)),
)

# Group -> kinds that a dump of a cluster may hold and the mesh has no use for.
_UNUSED = {
    "": "Binding ComponentStatus ConfigMap Endpoints Event LimitRange Node PersistentVolume "
    "PersistentVolumeClaim PodTemplate ReplicationController ResourceQuota Secret",
    "admissionregistration.k8s.io": "MutatingAdmissionPolicy MutatingAdmissionPolicyBinding "
    "MutatingWebhookConfiguration ValidatingAdmissionPolicy ValidatingAdmissionPolicyBinding "
    "ValidatingWebhookConfiguration",
    "apiextensions.k8s.io": "CustomResourceDefinition",
    "apiregistration.k8s.io": "APIService",
    "apps": "ControllerRevision DaemonSet ReplicaSet StatefulSet",
    "autoscaling": "HorizontalPodAutoscaler",
    "batch": "CronJob Job",
    "certificates.k8s.io": "CertificateSigningRequest",
    "coordination.k8s.io": "Lease",
    "discovery.k8s.io": "EndpointSlice",
    "events.k8s.io": "Event",
    "extensions.istio.io": "WasmPlugin",
    "flowcontrol.apiserver.k8s.io": "FlowSchema PriorityLevelConfiguration",
    "gateway.networking.k8s.io": "BackendTLSPolicy GRPCRoute GatewayClass HTTPRoute ReferenceGrant TCPRoute "
    "TLSRoute UDPRoute",
    "networking.istio.io": "DestinationRule EnvoyFilter Gateway ProxyConfig ServiceEntry Sidecar "
    "VirtualService WorkloadEntry WorkloadGroup",
    "networking.k8s.io": "IPAddress Ingress IngressClass ServiceCIDR",
    "node.k8s.io": "RuntimeClass",
    "policy": "PodDisruptionBudget",
    "rbac.authorization.k8s.io": "ClusterRole ClusterRoleBinding Role RoleBinding",
    "scheduling.k8s.io": "PriorityClass",
    "security.istio.io": "RequestAuthentication",
    "storage.k8s.io": "CSIDriver CSINode CSIStorageCapacity StorageClass VolumeAttachment",
    "telemetry.istio.io": "Telemetry",
}

KINDS: tuple[Kind, ...] = (
    *_USED,
    *(Kind(name, group) for group, names in _UNUSED.items() for name in names.split()),
)
KIND_NAMES = frozenset(kind.name for kind in KINDS)


def kinds_named(name: str) -> tuple[Kind, ...]:
    """Every kind of this name: different groups may share one."""
    return tuple(kind for kind in KINDS if kind.name == name)
