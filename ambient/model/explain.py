"""Why a connection would be let through or not: the way it takes and the rule that decides.

Floor 0: asks ``route``, ``admit`` and ``decide`` themselves, so that it cannot disagree with the
data path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ambient.model.address import format_hostport
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Mesh
from ambient.model.policy import Connection, Verdict, decide
from ambient.model.route import (
    Pass,
    Refuse,
    Rejected,
    Route,
    Tunnel,
    address_like,
    admit,
    route,
    route_request,
)
from ambient.model.service import Service
from ambient.model.workload import Protocol, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The answer of ``authz check``.

    Attributes:
        policy: Key of the policy that decided, or "".
        layer: Who decides: ``"ztunnel"``, ``"sidecar"``, ``"route"`` (no way there) or ``"none"``.
        path: The way, one step each, for people: ``"ztunnel/node-1"``, ``"waypoint bookinfo/waypoint"``.
    """

    verdict: Verdict
    policy: str
    layer: str
    path: tuple[str, ...]


def authz_check(mesh: Mesh, source: Workload, destination: Workload | Service, port: int) -> Explanation:
    """Explain what happens to a connection from *source* to *port* of *destination*.

    A service may have endpoints that answer differently: then the refusal is told, with how many
    of them refuse.
    """
    ip = _address(mesh, destination)
    if not ip:
        return _lost(f"{destination.name} has no address", (_name(source),))
    answers = [_follow(mesh, source, ip, port, chance) for chance in _chances(mesh, destination, port)]
    refused = [each for each in answers if not each.verdict.allowed]
    if not refused or len(refused) == len(answers):
        return answers[0]
    verdict = refused[0].verdict
    reason = f"{verdict.reason} (at {len(refused)} of {len(answers)} endpoints)"
    return replace(refused[0], verdict=replace(verdict, reason=reason))


def refuses_strangers(mesh: Mesh, workload: Workload) -> bool:
    """Whether policy refuses *workload* a connection of which nothing is known but that it has no identity.

    STRICT mutual TLS does; so does a policy that allows only named principals.
    """
    nobody = Connection(None, "0.0.0.0", "0.0.0.0", 0)
    return not decide(mesh.policies_for(workload), nobody).allowed


def _address(mesh: Mesh, destination: Workload | Service) -> str:
    """Where a client would connect to: a headless service is the addresses of its endpoints."""
    addresses = destination.addresses
    if not addresses and isinstance(destination, Service):
        addresses = tuple(each.addresses[0] for each in mesh.endpoints(destination.key) if each.addresses)
    return addresses[0] if addresses else ""


def _chances(mesh: Mesh, destination: Workload | Service, port: int) -> list[float]:
    """One for each endpoint that the connection could get."""
    if isinstance(destination, Workload) or not destination.addresses:
        return [0.0]
    count = len(mesh.targets(destination.key, port)) or 1
    # The middle of each share, so that no rounding picks a neighbour.
    return [(index + 0.5) / count for index in range(count)]


def _follow(mesh: Mesh, source: Workload, ip: str, port: int, chance: float) -> Explanation:
    path: tuple[str, ...] = (_name(source),)
    match source.protocol:
        case Protocol.HBONE:
            path += (f"ztunnel/{source.node}",)
            found = route(mesh, source, ip, port, chance)
            if isinstance(found, Tunnel) and found.through_waypoint:
                return _through_waypoint(mesh, found, ip, port, chance, path)
            # To a sidecar, ztunnel speaks plaintext.
            identity = source.identity if isinstance(found, Tunnel) else None
        case Protocol.ISTIO_MTLS:
            path += (f"sidecar {_name(source)}",)
            found = route_request(mesh, source, ip, port, "", chance)
            identity = source.identity
        case _:
            found = _uncaptured(mesh, source, ip, port, chance)
            identity = None
    return _arrive(mesh, source, found, identity, path)


def _uncaptured(mesh: Mesh, source: Workload, ip: str, port: int, chance: float) -> Route:
    """What the node does without us: a virtual address becomes an endpoint, the rest goes as it is."""
    service = mesh.service_by_address(ip, source.namespace)
    if service is None:
        workload = mesh.workload_by_address(ip, source.node)
        return Pass(ip, port, workload_uid=workload.uid if workload else "")
    targets = mesh.targets(service.key, port)
    if not targets:
        return Refuse(f"no healthy upstream: {format_hostport(ip, port)}")
    workload, target = targets[int(chance * len(targets))]
    return Pass(address_like(workload, ip), target, service.key, workload.uid)


def _through_waypoint(
    mesh: Mesh, hop: Tunnel, ip: str, port: int, chance: float, path: tuple[str, ...]
) -> Explanation:
    waypoint = mesh.workload(hop.workload_uid)
    assert waypoint is not None  # route() has just chosen it.
    path += (f"waypoint {_name(waypoint)}",)
    found = route_request(mesh, waypoint, ip, port, "", chance)
    return _arrive(mesh, waypoint, found, waypoint.identity, path)


def _arrive(
    mesh: Mesh, last: Workload, found: Route, identity: SpiffeId | None, path: tuple[str, ...]
) -> Explanation:
    """The end of the way: *last* is who opened the connection that the destination sees."""
    if isinstance(found, Refuse):
        return _lost(found.reason, path)
    destination = mesh.workload(found.workload_uid)
    if destination is None:
        verdict = Verdict(True, "the destination is not in the mesh: nobody enforces policy")
        return Explanation(verdict=verdict, policy="", layer="none", path=(*path, found.ip))
    if destination.protocol is Protocol.TCP:
        verdict = Verdict(True, "the destination is not enrolled: nobody enforces policy")
        return Explanation(verdict=verdict, policy="", layer="none", path=(*path, _name(destination)))
    layer, step = "ztunnel", f"ztunnel/{destination.node}"
    if destination.protocol is Protocol.ISTIO_MTLS:
        layer, step = "sidecar", f"sidecar {_name(destination)}"
    path = (*path, step, _name(destination))
    ip, port = found.ip, found.port
    if isinstance(found, Tunnel):
        admission = admit(mesh, destination, found.ip, found.authority, last.identity)
        if isinstance(admission, Rejected):
            verdict = Verdict(False, admission.reason)
            return Explanation(verdict=verdict, policy="", layer=layer, path=path)
        ip, port = admission.ip, admission.port
    seen_ip = address_like(last, ip) if last.addresses else ""
    verdict = decide(mesh.policies_for(destination), Connection(identity, seen_ip, ip, port))
    return Explanation(verdict=verdict, policy=verdict.policy, layer=layer, path=path)


def _lost(reason: str, path: tuple[str, ...]) -> Explanation:
    return Explanation(verdict=Verdict(False, reason), policy="", layer="route", path=path)


def _name(workload: Workload) -> str:
    return f"{workload.namespace}/{workload.name}"
