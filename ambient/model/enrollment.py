"""Which mode a pod is to be in, by its labels and its namespace's, and why not in another.

Floor 0. Source: Istio ``label/labels.yaml``, ``cni/pkg/util/podutil.go`` and the injector's rules.
A pod's own label beats its namespace's; on one level, the sidecar beats ambient.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

DATAPLANE_MODE = "istio.io/dataplane-mode"
NAMESPACE_INJECTION = "istio-injection"
POD_INJECTION = "sidecar.istio.io/inject"
DNS_CAPTURE = "ambient.istio.io/dns-capture"


class Mode(Enum):
    """How a pod's traffic is carried."""

    NONE = "none"
    SIDECAR = "sidecar"
    AMBIENT = "ambient"


def desired_mode(
    namespace_labels: Mapping[str, str],
    pod_labels: Mapping[str, str],
    *,
    host_network: bool = False,
    is_waypoint: bool = False,
) -> Mode:
    """Decide the mode that the labels ask for and the pod can have."""
    return _decide(namespace_labels, pod_labels, host_network=host_network, is_waypoint=is_waypoint)[0]


def why_not(
    namespace_labels: Mapping[str, str],
    pod_labels: Mapping[str, str],
    *,
    host_network: bool = False,
    is_waypoint: bool = False,
) -> str:
    """Say why the pod is not in ambient mode; "" if it is to be."""
    mode, reason = _decide(namespace_labels, pod_labels, host_network=host_network, is_waypoint=is_waypoint)
    return "" if mode is Mode.AMBIENT else reason


def dns_capture(annotations: Mapping[str, str]) -> bool:
    """Whether the lookups of an enrolled pod are captured too: Istio's annotation, on where it is not set."""
    return annotations.get(DNS_CAPTURE, "true").strip().lower() != "false"


def _decide(
    namespace: Mapping[str, str], pod: Mapping[str, str], *, host_network: bool, is_waypoint: bool
) -> tuple[Mode, str]:
    if is_waypoint:
        return Mode.NONE, "the pod is a waypoint: it speaks HBONE itself"
    if host_network:
        return Mode.NONE, "the pod uses the host's network: its traffic is the node's"
    if pod.get(POD_INJECTION) == "true":
        return Mode.SIDECAR, f"pod label {POD_INJECTION}=true asks for a sidecar"
    if pod.get(DATAPLANE_MODE) == "ambient":
        return Mode.AMBIENT, f"pod label {DATAPLANE_MODE}=ambient"
    if namespace.get(NAMESPACE_INJECTION) == "enabled" and pod.get(POD_INJECTION) != "false":
        return Mode.SIDECAR, f"namespace label {NAMESPACE_INJECTION}=enabled asks for a sidecar"
    if pod.get(DATAPLANE_MODE) == "none":
        return Mode.NONE, f"pod label {DATAPLANE_MODE}=none opts out"
    if namespace.get(DATAPLANE_MODE) == "ambient":
        return Mode.AMBIENT, f"namespace label {DATAPLANE_MODE}=ambient"
    return Mode.NONE, f"neither the pod nor its namespace has the label {DATAPLANE_MODE}=ambient"
