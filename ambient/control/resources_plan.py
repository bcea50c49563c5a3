"""From objects and pods to what the daemons are told: workloads, services and policies. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from ambient.control.pods import Pod, Role
from ambient.control.store_plan import Store
from ambient.control.waypoints_plan import Waypoint, for_service, for_workload
from ambient.model.authorization import Security
from ambient.model.enrollment import Mode
from ambient.model.objects import Object, selects_labels
from ambient.model.service import CLUSTER_DOMAIN, Service, ServicePort
from ambient.model.workload import HBONE_PORT, Protocol, Workload

Addresses: TypeAlias = Callable[[str, str], tuple[str, ...]]
Waypoints: TypeAlias = Mapping[tuple[str, str], Waypoint]

# Istio's order for the name under which telemetry knows a workload.
_CANONICAL = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
_REVISION = ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")


def services_of(store: Store, waypoints: Waypoints, addresses: Addresses) -> dict[str, Service]:
    """Return every service, those of the waypoints included, by key.

    Args:
        addresses: (namespace, name) -> the virtual addresses of a service.
    """
    made = [
        _service(each, store, waypoints, addresses) for each in store.of_kind("Service") if _has_pods(each)
    ]
    named = {service.key: service for service in made}
    for each in waypoints.values():
        named.setdefault(each.key, _waypoint_service(each, addresses))
    return named


def workloads_of(
    store: Store, pods: Iterable[Pod], waypoints: Waypoints, security: Security
) -> dict[str, Workload]:
    """Return one workload per pod that has an address, by uid."""
    objects = [each for each in store.of_kind("Service") if _has_pods(each)]
    made = [_workload(pod, objects, store, waypoints, security) for pod in pods if pod.addresses]
    return {workload.uid: workload for workload in made}


def hostname(namespace: str, name: str) -> str:
    """The full name of a service."""
    return f"{name}.{namespace}.svc.{CLUSTER_DOMAIN}"


def _has_pods(service: Object) -> bool:
    """ExternalName is a name for something else, and none of ours."""
    return service.spec.get("type") != "ExternalName"


def _service(obj: Object, store: Store, waypoints: Waypoints, addresses: Addresses) -> Service:
    headless = obj.spec.get("clusterIP") == "None"
    above = store.labels_of_namespace(obj.namespace)
    return Service(
        name=obj.name,
        namespace=obj.namespace,
        hostname=hostname(obj.namespace, obj.name),
        addresses=() if headless else _of_families(obj, addresses(obj.namespace, obj.name)),
        ports=tuple(map(_port, _tcp_ports(obj))),
        waypoint=for_service(waypoints, obj.namespace, obj.labels, above),
    )


def _of_families(obj: Object, addresses: tuple[str, ...]) -> tuple[str, ...]:
    """Those of *addresses* whose family the service has: IPv4 alone unless it asks for more.

    Kubernetes' rule, and it matters: many programs listen on 0.0.0.0 only. Without a mesh a client that tried
    IPv6 is refused at once and tries IPv4; through a proxy it is connected first, and then it is too late.
    """
    asked = list(obj.spec.get("ipFamilies") or ["IPv4"])
    if obj.spec.get("ipFamilyPolicy", "SingleStack") != "SingleStack" or len(asked) > 1:
        asked += [family for family in ("IPv4", "IPv6") if family not in asked]
    families = {family: [each for each in addresses if _family(each) == family] for family in asked}
    # A fabric without the family that was asked for still serves.
    return tuple(each for family in asked for each in families[family]) or addresses


def _family(address: str) -> str:
    return "IPv6" if ":" in address else "IPv4"


def _waypoint_service(waypoint: Waypoint, addresses: Addresses) -> Service:
    return Service(
        name=waypoint.name,
        namespace=waypoint.namespace,
        hostname=hostname(waypoint.namespace, waypoint.name),
        addresses=addresses(waypoint.namespace, waypoint.name),
        ports=(ServicePort(port=HBONE_PORT, target_port=HBONE_PORT, name="mesh"),),
    )


def _tcp_ports(service: Object) -> Sequence[Mapping[str, Any]]:
    return [port for port in service.spec.get("ports") or () if port.get("protocol", "TCP") == "TCP"]


def _port(port: Mapping[str, Any]) -> ServicePort:
    target = port.get("targetPort", port["port"])
    named = isinstance(target, str)
    return ServicePort(
        port=port["port"],
        target_port=0 if named else target,
        target_name=target if named else "",
        name=port.get("name", ""),
        app_protocol="http" if _is_http(port) else "tcp",
    )


def _is_http(port: Mapping[str, Any]) -> bool:
    """Istio's rule: ``appProtocol``, else the part of the port's name before the first dash."""
    told = port.get("appProtocol") or port.get("name") or ""
    return told.lower().rpartition("/")[2].partition("-")[0] in ("http", "http2", "h2c", "grpc", "ws")


def _workload(
    pod: Pod, services: Sequence[Object], store: Store, waypoints: Waypoints, security: Security
) -> Workload:
    kind, _, owner = pod.owner.partition("/")
    above = store.labels_of_namespace(pod.namespace)
    mine = pod.role is Role.WAYPOINT
    waypoint = waypoints.get((pod.namespace, owner)) if mine else None
    return Workload(
        uid=pod.uid,
        name=pod.name,
        namespace=pod.namespace,
        service_account=pod.spec.service_account,
        addresses=pod.addresses,
        node=pod.node,
        protocol=_protocol(pod),
        services={waypoint.key: {HBONE_PORT: HBONE_PORT}} if waypoint else _memberships(pod, services),
        authorization_policies=() if mine else security.bound_to(pod.namespace, pod.labels),
        waypoint="" if mine else for_workload(waypoints, pod.namespace, pod.labels, above),
        waypoint_for=waypoint.key if waypoint else "",
        workload_name=owner if kind != "Pod" else pod.name,
        canonical_name=_first(pod.labels, _CANONICAL) or owner,
        canonical_revision=_first(pod.labels, _REVISION) or "latest",
        healthy=pod.ready,
        host_network=pod.spec.host_network,
    )


def _protocol(pod: Pod) -> Protocol:
    if pod.role is Role.WAYPOINT:
        return Protocol.HBONE if pod.status.ready else Protocol.TCP
    if pod.mode is Mode.SIDECAR:
        return Protocol.ISTIO_MTLS if pod.status.ready else Protocol.TCP
    return Protocol.HBONE if pod.capture.advertised else Protocol.TCP


def _memberships(pod: Pod, services: Sequence[Object]) -> dict[str, dict[int, int]]:
    """The services whose selector chooses *pod*, with the ports it serves for them."""
    chosen = [each for each in services if _chooses(each, pod)]
    return {f"{each.namespace}/{hostname(each.namespace, each.name)}": _targets(each, pod) for each in chosen}


def _chooses(service: Object, pod: Pod) -> bool:
    selector = service.spec.get("selector") or {}
    return service.namespace == pod.namespace and bool(selector) and selects_labels(selector, pod.labels)


def _targets(service: Object, pod: Pod) -> dict[int, int]:
    ports = map(_port, _tcp_ports(service))
    pairs = {each.port: each.target_port or pod.spec.port(each.target_name) for each in ports}
    return {port: target for port, target in pairs.items() if target}


def _first(labels: Mapping[str, str], names: Sequence[str]) -> str:
    return next((labels[name] for name in names if labels.get(name)), "")
