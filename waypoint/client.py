"""One downstream connection as routing, policy and records see it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ambient.model.address import format_hostport
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Mesh
from ambient.model.policy import Connection
from ambient.model.record import Direction, Peer
from ambient.model.workload import Workload


@dataclass(slots=True)
class Client:
    """Who connected, and where to.

    Attributes:
        reporter: Istio's word for where we stand: ``source``, ``destination`` or ``waypoint``.
        ip, port: What it wanted to reach, before any redirection.
        peer: Its address.
        identity: Proven by its certificate; None without one.
        checked: Version of the mesh whose policies allowed it; -1 for not asked.
        traceparent: Of the CONNECT that it came by, "" if it had none.
        text: Its fields of an access line, made once.
        name: What tells the sources of two series apart.
    """

    reporter: str
    ip: str
    port: int
    peer: tuple[str, int]
    workload: Workload | None = None
    identity: SpiffeId | None = None
    checked: int = -1
    traceparent: str = ""
    text: str = field(default="", repr=False)
    name: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        parts = [f"src.addr={format_hostport(*self.peer)}"]
        if self.workload is not None:
            parts.append(f'src.workload="{self.workload.name}" src.namespace="{self.workload.namespace}"')
        if self.identity is not None:
            parts.append(f'src.identity="{self.identity}"')
        direction = "outbound" if self.reporter == "source" else "inbound"
        parts.append(f'dst.target={format_hostport(self.ip, self.port)} direction="{direction}"')
        self.text = " ".join(parts)
        self.name = f"{self.workload.uid if self.workload is not None else ''} {self.identity or ''}"

    @property
    def facts(self) -> Connection:
        """What policy is asked about."""
        return Connection(self.identity, self.peer[0], self.ip, self.port)

    @property
    def direction(self) -> Direction:
        """Which way the connection crossed our workload."""
        return Direction.OUTBOUND if self.reporter == "source" else Direction.INBOUND

    @property
    def source(self) -> Peer:
        """Its end, for a connection's record."""
        return peer_of(format_hostport(*self.peer), self.workload, self.identity)


def peer_of(address: str, workload: Workload | None, identity: SpiffeId | None) -> Peer:
    """One end of a connection, for its record."""
    if workload is None:
        return Peer(address=address, identity=identity)
    return Peer(address=address, workload=workload.name, namespace=workload.namespace, identity=identity)


def speaks_http(mesh: Mesh, namespace: str, ip: str, port: int) -> bool:
    """Whether what listens at *ip*:*port* is HTTP by its service's word; everything else is bytes."""
    service = mesh.service_by_address(ip, namespace)
    if service is not None:
        return any(each.port == port and each.app_protocol == "http" for each in service.ports)
    workload = mesh.workload_by_address(ip)
    return workload is not None and serves_http(mesh, workload, port)


def serves_http(mesh: Mesh, workload: Workload, target_port: int) -> bool:
    """Whether a service says that *target_port* of *workload* is HTTP."""
    for key, ports in workload.services.items():
        service = mesh.service(key)
        if service is None:
            continue
        http = {each.port for each in service.ports if each.app_protocol == "http"}
        if any(target == target_port and port in http for port, target in ports.items()):
            return True
    return False
