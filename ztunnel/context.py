"""What the connections of one workload share. It knows one workload, and no node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from ambient.engine.reactor import Reactor
from ambient.engine.tls import TlsContext
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Mesh
from ambient.model.route import Route, Tunnel
from ambient.model.workload import Workload
from ambient.wire.baggage import baggage_of, format_baggage
from ztunnel.flow import Flow, Remembered
from ztunnel.journal import Journal
from ztunnel.network import Address, PodNetwork

if TYPE_CHECKING:
    from ztunnel.connection import ProxiedConnection
    from ztunnel.name_server import Names


class Contexts(Protocol):
    """The part of the certificate cache that a connection may use: contexts, never keys."""

    def context_nowait(self, identity: SpiffeId, *, server: bool) -> TlsContext:
        """The current TLS context of *identity*; raises ``Unavailable`` if there is none."""
        ...


class OpenConnections:
    """Every connection of one workload that has no record yet; contains the addresses of their peers."""

    def __init__(self) -> None:
        self._open: dict[ProxiedConnection, None] = {}
        self._peers: dict[Address, int] = {}
        self.on_empty: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, peer: object) -> bool:
        return peer in self._peers

    def add(self, connection: ProxiedConnection) -> None:
        """Take part until ``discard``."""
        self._open[connection] = None
        peers, source = self._peers, connection.source
        peers[source] = peers.get(source, 0) + 1

    def discard(self, connection: ProxiedConnection) -> None:
        """It has ended; tells ``on_empty`` if it was the last."""
        del self._open[connection]
        peers, source = self._peers, connection.source
        left = peers[source] - 1
        if left:
            peers[source] = left
        else:
            del peers[source]
        if not self._open and self.on_empty is not None:
            self.on_empty()

    def all(self) -> tuple[ProxiedConnection, ...]:
        """A copy, oldest first: closing one changes the set."""
        return tuple(self._open)


@dataclass(slots=True, eq=False)
class Context:
    """The workload and everything around it.

    Attributes:
        chance: A number in [0, 1), for whatever is left to chance.
        cluster: The cluster's name, in records and baggage.
        socks: Whether port 15080 is open.
        names: What the name server of port 15053 needs; None for no name server.
        routes: Outbound, by address and port, where they are not left to chance.
        usual: The same where the route is a tunnel, with its flow.
        flows: Outbound, by destination workload, address, authority and service.
    """

    uid: str
    identity: SpiffeId
    reactor: Reactor
    mesh: Mesh
    svids: Contexts
    network: PodNetwork
    journal: Journal
    open: OpenConnections
    chance: Callable[[], float]
    cluster: str = "Kubernetes"
    response_baggage: bool = True
    names: Names | None = None
    socks: bool = False
    routes: Remembered[Address, Route] = field(init=False)
    usual: Remembered[Address, tuple[Tunnel, Flow]] = field(init=False)
    flows: Remembered[tuple[str, str, str, str], Flow] = field(init=False)
    _baggage: tuple[Workload, str] | None = None

    def __post_init__(self) -> None:
        self.routes = Remembered(self.mesh)
        self.usual = Remembered(self.mesh)
        self.flows = Remembered(self.mesh)

    def baggage(self, me: Workload) -> str:
        """What we say about *me*, worked out once until it changes."""
        if self._baggage is None or self._baggage[0] is not me:
            self._baggage = me, format_baggage(baggage_of(me, self.cluster))
        return self._baggage[1]

    @property
    def me(self) -> Workload | None:
        """The workload as the mesh knows it now."""
        return self.mesh.workload(self.uid)
