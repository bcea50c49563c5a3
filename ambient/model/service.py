"""Services: a name and virtual addresses in front of workloads.

Floor 0. Names after Istio's ``workload.proto`` (Service).
"""

from __future__ import annotations

from dataclasses import dataclass

CLUSTER_DOMAIN = "cluster.local"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """One port of a service.

    Attributes:
        port: The port clients use, 1..65535.
        target_port: The pod's port; 0 if it is a named port, resolved per workload.
        target_name: The named port, or "".
        app_protocol: ``"http"`` or ``"tcp"``; from ``appProtocol`` or the port's name prefix.
    """

    port: int
    target_port: int = 0
    target_name: str = ""
    name: str = ""
    app_protocol: str = "tcp"


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """A name with virtual addresses.

    Attributes:
        addresses: Virtual addresses as canonical text; empty for a headless service.
        waypoint: Key of the waypoint's service, or "" for none.
    """

    name: str
    namespace: str
    hostname: str  # "reviews.bookinfo.svc.cluster.local"
    addresses: tuple[str, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    waypoint: str = ""

    @property
    def key(self) -> str:
        """``namespace/hostname``, as Istio's ztunnel keys services."""
        return f"{self.namespace}/{self.hostname}"
