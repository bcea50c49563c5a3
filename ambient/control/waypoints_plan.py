"""Which waypoint serves what. Pure.

Source: istiod's ``ambient/waypoints.go``: an object's label beats its namespace's, ``none`` stops, the
waypoint must be there and ready, its ``istio.io/waypoint-for`` must cover the kind of traffic, and a
service-only waypoint that a namespace names is not for traffic to pods.

One difference, on the safe side: a waypoint that was ready once and is not now still counts, so that its
traffic waits or fails instead of going around its policies. It ends with its Gateway, or the label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ambient.model.objects import Object
from ambient.model.service import CLUSTER_DOMAIN

CLASS = "istio-waypoint"
USE_WAYPOINT = "istio.io/use-waypoint"
USE_WAYPOINT_NAMESPACE = "istio.io/use-waypoint-namespace"
WAYPOINT_FOR = "istio.io/waypoint-for"
GATEWAY_NAME = "gateway.networking.k8s.io/gateway-name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Waypoint:
    """One Gateway of class ``istio-waypoint``.

    Attributes:
        traffic: ``service``, ``workload``, ``all`` or ``none``.
        programmed: Its pod was ready at least once.
    """

    namespace: str
    name: str
    traffic: str = "service"
    programmed: bool = False

    @property
    def key(self) -> str:
        """The key of its service."""
        return f"{self.namespace}/{self.name}.{self.namespace}.svc.{CLUSTER_DOMAIN}"


def is_waypoint(gateway: Object) -> bool:
    """Whether a Gateway is one of ours."""
    return gateway.spec.get("gatewayClassName") == CLASS


def waypoint_of(gateway: Object, programmed: bool) -> Waypoint:
    """Read a Gateway."""
    traffic = gateway.labels.get(WAYPOINT_FOR, "service")
    return Waypoint(namespace=gateway.namespace, name=gateway.name, traffic=traffic, programmed=programmed)


def for_service(
    waypoints: Mapping[tuple[str, str], Waypoint],
    namespace: str,
    labels: Mapping[str, str],
    namespace_labels: Mapping[str, str],
) -> str:
    """Return the key of the waypoint for traffic to a service, or ""."""
    found = _named(waypoints, namespace, labels, namespace_labels)
    return found.key if found is not None and found.traffic in ("service", "all") else ""


def for_workload(
    waypoints: Mapping[tuple[str, str], Waypoint],
    namespace: str,
    labels: Mapping[str, str],
    namespace_labels: Mapping[str, str],
) -> str:
    """Return the key of the waypoint for traffic to a pod's address, or ""."""
    found = _named(waypoints, namespace, labels, namespace_labels)
    return found.key if found is not None and found.traffic in ("workload", "all") else ""


def _named(
    waypoints: Mapping[tuple[str, str], Waypoint],
    namespace: str,
    labels: Mapping[str, str],
    namespace_labels: Mapping[str, str],
) -> Waypoint | None:
    source = labels if USE_WAYPOINT in labels else namespace_labels
    name = source.get(USE_WAYPOINT, "")
    if name in ("", "none"):
        return None
    found = waypoints.get((source.get(USE_WAYPOINT_NAMESPACE, namespace), name))
    return found if found is not None and found.programmed else None
