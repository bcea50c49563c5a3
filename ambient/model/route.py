"""Where a connection goes, and whether one that arrived is ours: the decisions of the data path.

Floor 0. Chance is an argument, lookups are dictionary accesses, and what is unknown is refused.

Source: Istio's ztunnel, ``src/proxy/outbound.rs`` and ``inbound.rs``. Order of ``route``:

    virtual address of a service? ── has a waypoint, and we are not it ──► Tunnel to the waypoint
            │                     └─ else one healthy endpoint ──────────► direct
    address of a workload? ──────── has a waypoint, and we are not it ──► Tunnel to the waypoint
            │                     └─ else ───────────────────────────────► direct
    neither ─────────────────────────────────────────────────────────────► Pass

where *direct* is a Tunnel for a workload that speaks HBONE and a Pass for any other. The waypoint of
the source is never used; service traffic never uses a workload's waypoint, nor the other way round.
A waypoint that is named and has no endpoint refuses: going around it would lose its policies.
"""

from __future__ import annotations

from dataclasses import dataclass

from ambient.errors import ConfigError
from ambient.model.address import format_hostport, is_hostname, is_ipv6, parse_hostport
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Mesh
from ambient.model.record import Flag
from ambient.model.service import Service
from ambient.model.workload import HBONE_PORT, Protocol, Workload

OUTBOUND_PORT = 15001
INBOUND_PLAINTEXT_PORT = 15006
DNS_PORT = 15053
SOCKS_PORT = 15080

# The proxy's own listeners in a pod: dialling one would be a call to ourselves.
OWN_PORTS = frozenset({OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT, HBONE_PORT, DNS_PORT, SOCKS_PORT})
# Beside them admin, metrics and readiness: a pod that has them is a proxy, and no tunnel leads to those.
RESERVED_PORTS = OWN_PORTS | {15000, 15020, 15021}


@dataclass(frozen=True, slots=True)
class Pass:
    """Dial this address in plaintext.

    Attributes:
        service: Key of the service that was addressed, or "".
        workload_uid: The workload that was chosen, or "" for a stranger to the mesh.
    """

    ip: str
    port: int
    service: str = ""
    workload_uid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnel:
    """Dial this address with mutual TLS and ask for *authority* by HBONE CONNECT.

    Attributes:
        authority: The target, ``ip:port``.
        identities: The peer's certificate must hold one of these.
        workload_uid: Who is dialled: the destination, or its waypoint.
        service: Key of the service that was addressed, or "".
    """

    ip: str
    authority: str
    identities: frozenset[SpiffeId]
    workload_uid: str
    service: str = ""
    through_waypoint: bool = False
    port: int = HBONE_PORT


@dataclass(frozen=True, slots=True)
class Refuse:
    """Close the connection; the reason goes into the access record."""

    reason: str
    flag: Flag = Flag.CONNECT


@dataclass(frozen=True, slots=True)
class Admitted:
    """The target is ours: ask policy, then dial it. *service* is the key of a service named, or ""."""

    ip: str
    port: int
    service: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """Answer the CONNECT with this status."""

    status: int
    reason: str


Route = Pass | Tunnel | Refuse
Admission = Admitted | Rejected


def route(mesh: Mesh, source: Workload, ip: str, port: int, chance: float) -> Route:
    """Decide where a connection from *source* to *ip*:*port* goes.

    Args:
        mesh: What is known now.
        source: Who opened the connection.
        ip: Original destination, canonical text.
        port: Original destination port.
        chance: Picks the endpoint; 0 <= chance < 1.
    """
    if port in OWN_PORTS and (_is_loopback(ip) or ip in source.addresses):
        return Refuse("attempted recursive call to ourselves")
    service = mesh.service_by_address(ip, source.namespace)
    if service is not None:
        if service.waypoint and service.waypoint != source.waypoint_for:
            return _to_waypoint(mesh, service.waypoint, service.key, ip, port, chance)
        return _to_endpoint(mesh, service, ip, port, chance)
    workload = mesh.workload_by_address(ip, source.node)
    if workload is None:
        return Pass(ip, port)
    if workload.waypoint and workload.waypoint != source.waypoint_for:
        return _to_waypoint(mesh, workload.waypoint, "", ip, port, chance)
    return _direct(workload, ip, port, "")


def route_request(
    mesh: Mesh, me: Workload, authority_ip: str, port: int, host_header: str, chance: float
) -> Route:
    """Decide where a request goes that an L7 proxy holds: by host, else by the address it was sent to.

    Args:
        mesh: What is known now.
        me: The proxy's own workload. A waypoint serves only what names it as its waypoint; a sidecar
            (``waypoint_for`` empty) sends its pod's requests anywhere.
        authority_ip: Where the client sent the connection, canonical text.
        port: The port it sent it to.
        host_header: As the client wrote it, with or without a port; "" for none.
        chance: Picks the endpoint; 0 <= chance < 1.
    """
    service = _service_of_host(mesh, me, host_header, port) or mesh.service_by_address(
        authority_ip, me.namespace
    )
    if service is not None and me.waypoint_for in ("", service.waypoint):
        return _to_endpoint(mesh, service, authority_ip, port, chance)
    workload = mesh.workload_by_address(authority_ip, me.node)
    if service is None and workload is not None and me.waypoint_for in ("", workload.waypoint):
        return _direct(workload, authority_ip, port, "")
    if me.waypoint_for:
        return Refuse(f"not served by this waypoint: {format_hostport(authority_ip, port)}")
    return Pass(authority_ip, port)


def admit(mesh: Mesh, me: Workload, connection_ip: str, authority: str, source: SpiffeId) -> Admission:
    """Decide whether a CONNECT that arrived for *me* names a target of mine.

    Policy is a separate question: ``enforce`` it on the target before dialling.

    Args:
        mesh: What is known now.
        me: The workload whose listener accepted the connection.
        connection_ip: The local address of the connection, canonical text.
        authority: The ``:authority`` as it stands.
        source: The peer's proven identity.
    """
    if source.trust_domain != me.trust_domain:
        return Rejected(403, f"foreign trust domain: {source.trust_domain}")
    try:
        host, port = parse_hostport(authority)
    except ConfigError as exc:
        return Rejected(400, f"bad authority: {exc}")
    if host == connection_ip:
        found: Admission = Admitted(host, port)
    elif not is_hostname(host):
        found = _admit_as_waypoint(mesh, me, connection_ip, host, port)
    else:
        found = _admit_name(mesh, me, connection_ip, host, port)
    if isinstance(found, Admitted) and found.ip == connection_ip and found.port in RESERVED_PORTS:
        return Rejected(503, f"attempted recursive call to ourselves: port {found.port}")
    return found


def _admit_as_waypoint(mesh: Mesh, me: Workload, connection_ip: str, ip: str, port: int) -> Admission:
    service = mesh.service_by_address(ip, me.namespace)
    if me.waypoint_for and service is not None and service.waypoint == me.waypoint_for:
        return Admitted(ip, port, service.key)
    workload = mesh.workload_by_address(ip, me.node)
    if me.waypoint_for and workload is not None and workload.waypoint == me.waypoint_for:
        return Admitted(ip, port)
    return Rejected(400, f"ip mismatch: {connection_ip} != {ip}")


def _admit_name(mesh: Mesh, me: Workload, connection_ip: str, name: str, port: int) -> Admission:
    service = mesh.service_by_hostname(name, me.namespace)
    if service is None:
        return Rejected(404, f"no service for hostname: {name}")
    if me.waypoint_for and service.waypoint == me.waypoint_for:
        return Admitted(service.addresses[0] if service.addresses else connection_ip, port, service.key)
    if service.key not in me.services:
        return Rejected(400, f"service {service.key} is not served by this workload")
    target = me.services[service.key].get(port, 0)
    if not target:
        return Rejected(503, f"requested service {name}:{port} found, but cannot resolve port")
    return Admitted(connection_ip, target, service.key)


def _to_waypoint(mesh: Mesh, key: str, service: str, ip: str, port: int, chance: float) -> Route:
    waypoints = [each for each in mesh.endpoints(key) if each.addresses]
    if not waypoints:
        return Refuse(f"waypoint without a healthy endpoint: {key}")
    chosen = waypoints[int(chance * len(waypoints))]
    return Tunnel(
        ip=address_like(chosen, ip),
        authority=format_hostport(ip, port),
        identities=frozenset({chosen.identity}),
        workload_uid=chosen.uid,
        service=service,
        through_waypoint=True,
    )


def _to_endpoint(mesh: Mesh, service: Service, ip: str, port: int, chance: float) -> Route:
    targets = mesh.targets(service.key, port)
    if not targets:
        return Refuse(f"no healthy upstream: {format_hostport(ip, port)}")
    workload, target_port = targets[int(chance * len(targets))]
    return _direct(workload, address_like(workload, ip), target_port, service.key)


def _direct(workload: Workload, ip: str, port: int, service: str) -> Route:
    if workload.protocol is not Protocol.HBONE:
        return Pass(ip, port, service, workload.uid)
    return Tunnel(
        ip=ip,
        authority=format_hostport(ip, port),
        identities=frozenset({workload.identity}),
        workload_uid=workload.uid,
        service=service,
    )


def _service_of_host(mesh: Mesh, me: Workload, host: str, port: int) -> Service | None:
    name = host.partition(":")[0]
    service = mesh.service_by_hostname(name, me.namespace) if name else None
    if service is None or all(each.port != port for each in service.ports):
        return None
    return service if me.waypoint_for in ("", service.waypoint) else None


def address_like(workload: Workload, ip: str) -> str:
    """Its address of the family of *ip*, else its first."""
    wanted = is_ipv6(ip)
    return next((each for each in workload.addresses if is_ipv6(each) is wanted), workload.addresses[0])


def _is_loopback(ip: str) -> bool:
    return ip.startswith("127.") or ip == "::1"
