"""The fields of a pod's specification: those that the mesh honours, and those that it only knows.

Floor 0: tables, after Kubernetes 1.34 ``core/v1``.
"""

from __future__ import annotations

from ambient.model.schema import (
    ENV_NAME,
    LABEL,
    LABEL_FORM,
    PORT_NAME,
    PORT_NAME_FORM,
    SUBDOMAIN,
    SUBDOMAIN_FORM,
    Check,
    choice,
    flag,
    list_of,
    number,
    port,
    port_or_name,
    struct,
    text,
    text_map,
)

_TEXTS = list_of(text())

_HTTP_HEADER = struct({"name": text(), "value": text()}, required=("name",))
_HTTP_GET = struct(
    {
        "path": text(),
        "port": port_or_name,
        "scheme": choice("HTTP", "HTTPS"),
        "httpHeaders": list_of(_HTTP_HEADER),
    },
    unused="host",
    required=("port",),
)
_PROBE = struct(
    {
        "httpGet": _HTTP_GET,
        "tcpSocket": struct({"port": port_or_name}, unused="host", required=("port",)),
        "exec": struct({"command": _TEXTS}, required=("command",)),
        "initialDelaySeconds": number(0),
        "periodSeconds": number(0),
        "timeoutSeconds": number(0),
        "successThreshold": number(0),
        "failureThreshold": number(0),
    },
    unused="grpc terminationGracePeriodSeconds",
)

_ENV_SOURCE = struct(
    {"fieldRef": struct({"fieldPath": text()}, unused="apiVersion", required=("fieldPath",))},
    unused="configMapKeyRef secretKeyRef resourceFieldRef fileKeyRef",
)
_ENV = struct(
    {"name": text(ENV_NAME, "the name of a variable"), "value": text(), "valueFrom": _ENV_SOURCE},
    required=("name",),
)
_CONTAINER_PORT = struct(
    {
        "containerPort": port,
        "name": text(PORT_NAME, PORT_NAME_FORM),
        "protocol": choice("TCP", "UDP", "SCTP"),
    },
    unused="hostPort hostIP",
    required=("containerPort",),
)

_CONTAINER = struct(
    {
        "name": text(LABEL, LABEL_FORM),
        "command": _TEXTS,
        "args": _TEXTS,
        "env": list_of(_ENV),
        "ports": list_of(_CONTAINER_PORT, unique="name"),
        "workingDir": text(),
        "readinessProbe": _PROBE,
        "livenessProbe": _PROBE,
        "startupProbe": _PROBE,
    },
    unused=(
        "envFrom image imagePullPolicy lifecycle resizePolicy resources restartPolicy restartPolicyRules "
        "securityContext stdin stdinOnce terminationMessagePath terminationMessagePolicy tty volumeDevices "
        "volumeMounts"
    ),
    required=("name",),
)

_REQUIREMENT = struct(
    {
        "key": text(),
        "operator": choice("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
        "values": _TEXTS,
    },
    required=("key", "operator"),
)
_NODE_TERM = struct({"matchExpressions": list_of(_REQUIREMENT)}, unused="matchFields")
_PREFERENCE = struct({"weight": number(1, 100), "preference": _NODE_TERM}, required=("weight", "preference"))
_NODE_AFFINITY = struct(
    {
        "preferredDuringSchedulingIgnoredDuringExecution": list_of(_PREFERENCE),
        "requiredDuringSchedulingIgnoredDuringExecution": struct({"nodeSelectorTerms": list_of(_NODE_TERM)}),
    }
)

_POD_SPEC_FIELDS: dict[str, Check] = {
    "containers": list_of(_CONTAINER, unique="name"),
    "serviceAccountName": text(SUBDOMAIN, SUBDOMAIN_FORM),
    "serviceAccount": text(SUBDOMAIN, SUBDOMAIN_FORM),  # The old name of the same field.
    "hostNetwork": flag,
    "nodeName": text(SUBDOMAIN, SUBDOMAIN_FORM),
    "nodeSelector": text_map,
    "affinity": struct({"nodeAffinity": _NODE_AFFINITY}, unused="podAffinity podAntiAffinity"),
    "terminationGracePeriodSeconds": number(0),
}

POD_SPEC = struct(
    _POD_SPEC_FIELDS,
    unused=(
        "activeDeadlineSeconds automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks "
        "ephemeralContainers hostAliases hostIPC hostPID hostUsers hostname hostnameOverride "
        "imagePullSecrets initContainers os overhead preemptionPolicy priority priorityClassName "
        "readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName "
        "schedulingGates securityContext setHostnameAsFQDN shareProcessNamespace subdomain tolerations "
        "topologySpreadConstraints volumes"
    ),
    required=("containers",),
)
