"""What every part of one waypoint or sidecar shares, and the network as they see it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from ambient.engine.dial import Dialling, dial_socket
from ambient.engine.netns import PROXY_MARK, listen_in, original_destination
from ambient.engine.reactor import Reactor
from ambient.engine.tls import TlsContext
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Mesh
from ambient.model.workload import Workload
from waypoint.journal import Journal

Address: TypeAlias = tuple[str, int]
OnDialled: TypeAlias = Callable[[socket.socket | OSError], None]

# What sidecars agree on; the first is Istio's word for mutual TLS between proxies, which no application uses.
ALPN_SIDECAR = ("istio-peer-exchange", "http/1.1")


class Contexts(Protocol):
    """Where TLS contexts come from: ``SvidCache`` outside of tests."""

    def context_nowait(self, identity: SpiffeId, *, server: bool, alpn: tuple[str, ...] = ...) -> TlsContext:
        """The current context, or ``Unavailable``."""
        ...


class Network(Protocol):
    """What a proxy needs of the pod's network; tests and the loopback fabric have their own."""

    def listen(self, port: int) -> socket.socket:
        """A listener that takes redirected connections."""
        ...

    def original_destination(self, sock: socket.socket) -> Address:
        """Where the peer of an accepted connection wanted to go."""
        ...

    def dial(self, address: Address, on_done: OnDialled) -> object:
        """Connect to *address*; *on_done* may have the socket before this returns, and an error later."""
        ...


class PodNetwork:
    """The network namespace in which we run: the pod's.

    Args:
        captured: Whether the pod's rules redirect to us: a sidecar's do. Only then our sockets are marked and
            transparent, which takes CAP_NET_ADMIN.
    """

    def __init__(self, reactor: Reactor, *, captured: bool) -> None:
        self._reactor = reactor
        self._captured = captured
        self._mark = PROXY_MARK if captured else None

    def listen(self, port: int) -> socket.socket:
        """Dual-stack; transparent where TPROXY gives it foreign addresses."""
        return listen_in(None, port, transparent=self._captured, mark=self._mark)

    def original_destination(self, sock: socket.socket) -> Address:
        """By conntrack after REDIRECT, by the local address after TPROXY."""
        return original_destination(sock)

    def dial(self, address: Address, on_done: OnDialled) -> Dialling | None:
        """With the mark that the pod's rules let pass, where there are any."""
        return dial_socket(self._reactor, address, on_done, mark=self._mark)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One proxy's surroundings.

    Attributes:
        own: What we know of our workload before the control plane has named it; None: nothing.
        uid: Our own workload's.
        chance: Picks endpoints; 0 <= chance() < 1.
    """

    reactor: Reactor
    mesh: Mesh
    svids: Contexts
    network: Network
    journal: Journal
    uid: str
    chance: Callable[[], float]
    own: Workload | None = None
    cluster: str = "Kubernetes"

    @property
    def me(self) -> Workload | None:
        """Our own workload; good for routing, not for policy, until the control plane has named it."""
        return self.mesh.workload(self.uid) or self.own

    @property
    def named(self) -> Workload | None:
        """Our own workload, once the control plane has named it, with the policies bound to it."""
        return self.mesh.workload(self.uid)
