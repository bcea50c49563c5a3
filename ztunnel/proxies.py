"""Every workload that this ztunnel serves: proxies by uid, those that are still draining included.

The only place that knows there is more than one. A workload that is removed and added again while its
old connections drain gets a new proxy beside the old one.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import trio

from ambient.engine.reactor import Reactor
from ambient.engine.tls import TlsContext
from ambient.engine.tunnel import TunnelConnection
from ambient.errors import Unavailable
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Mesh
from ambient.wire.zds import WorkloadInfo
from ztunnel.connection import DRAINED
from ztunnel.context import Context, OpenConnections
from ztunnel.journal import Journal
from ztunnel.name_server import Names
from ztunnel.network import PodNetwork
from ztunnel.workload_proxy import WorkloadProxy

# How long an ``add`` may wait for the control plane to name the workload (ztunnel's figure) and sign for it.
KNOWN_DEADLINE = 5.0
CERTIFICATE_DEADLINE = 10.0

NO_NAMES = "its DNS is to be captured, but ISTIO_META_DNS_CAPTURE=false here"


class Svids(Protocol):
    """The part of the certificate cache that enrollment uses."""

    async def get(self, identity: SpiffeId) -> object:
        """Return when there is a certificate; raises ``Unavailable`` with control's reason."""
        ...

    def forget(self, identity: SpiffeId) -> None:
        """Drop it, and its key."""
        ...

    def context_nowait(self, identity: SpiffeId, *, server: bool) -> TlsContext:
        """The current TLS context."""
        ...


@dataclass(slots=True)
class Around:
    """What all workloads of the process share."""

    reactor: Reactor
    mesh: Mesh
    svids: Svids
    journal: Journal
    chance: Callable[[], float]
    cluster: str = "Kubernetes"
    response_baggage: bool = True
    names: Names | None = None
    socks: bool = False


class Proxies:
    """Starts and ends proxies.

    Args:
        on_drained: Told the uid of a removed workload when nothing of it is left.

    Attributes:
        started, ended: Proxies since the start of the process.
    """

    def __init__(self, around: Around, on_drained: Callable[[str], None] | None = None) -> None:
        self.on_drained = on_drained
        self._around = around
        self._current: dict[str, WorkloadProxy] = {}
        self._draining: set[WorkloadProxy] = set()
        self._changed = trio.Event()
        self._handshakes_in = self._handshakes_out = 0
        self.started = self.ended = 0

    async def add(
        self,
        workload: WorkloadInfo,
        network: PodNetwork,
        listeners: Mapping[int, socket.socket] = MappingProxyType({}),
    ) -> None:
        """Serve *workload* in *network*, with its certificate at hand when this returns.

        Args:
            listeners: What an earlier process listened on there, by port.

        Raises:
            Unavailable: the control plane does not know the workload, or gives it no certificate; or its
                lookups would be captured and nobody answer them.
            OSError: a port is taken. After either, nothing is left behind, *network* and *listeners* closed.
        """
        proxy: WorkloadProxy | None = None
        try:
            if workload.dns_capture and self._around.names is None:
                raise Unavailable(f"{NO_NAMES}: set it alike for the node's agent, or annotate the pod")
            await self._known(workload)
            await self._certified(workload.identity)
            proxy = self._make(workload, network)
            proxy.start(listeners)
            self.started += 1
        except BaseException:
            network.close()
            for sock in listeners.values():
                sock.close()
            self._forget_certificate(workload.identity)
            raise
        old = self._current.get(workload.uid)
        self._current[workload.uid] = proxy
        if old is not None:
            await self._let_go(old)

    async def remove(self, uid: str) -> bool:
        """Let *uid* drain, its ports being free when this returns; False if it was not served."""
        proxy = self._current.pop(uid, None)
        if proxy is None:
            return False
        await self._let_go(proxy)
        return True

    async def _let_go(self, proxy: WorkloadProxy) -> None:
        self._draining.add(proxy)
        await proxy.drain()

    def retire(self) -> None:
        """Leave every workload to a newer process; what is open goes on for as long as it lasts."""
        for uid in tuple(self._current):
            proxy = self._current.pop(uid)
            self._draining.add(proxy)
            proxy.retire()

    async def emptied(self) -> None:
        """Return when nothing is served and nothing is left to drain."""
        while self._current or self._draining:
            await self._changed.wait()

    def listeners(self, uid: str) -> list[tuple[int, int]]:
        """(port, descriptor) of each listener of *uid*, which is served now."""
        return self._current[uid].listeners()

    def running(self) -> frozenset[str]:
        """The uids served now."""
        return frozenset(self._current)

    def is_draining(self, uid: str) -> bool:
        """Whether old connections of *uid* are still open."""
        return any(proxy.context.uid == uid for proxy in self._draining)

    def mesh_changed(self) -> Iterator[None]:
        """Take these steps after each change of the mesh."""
        self._changed.set()
        self._changed = trio.Event()
        for proxy in (*self._current.values(), *self._draining):
            yield from proxy.mesh_changed()

    async def drain(self, deadline: float) -> None:
        """End every proxy: gracefully until *deadline* seconds have passed, then by force.

        The agent hears of none: its pods are still enrolled, and another ztunnel will serve them.
        """
        self.on_drained = None
        with trio.move_on_after(deadline):
            async with trio.open_nursery() as nursery:
                for uid in tuple(self._current):
                    nursery.start_soon(self.remove, uid)
            await self._empty()
        for proxy in self.all():
            proxy.abort(DRAINED)
        with trio.move_on_after(1):
            await self._empty()

    def dump(self) -> dict[str, object]:
        """Plain data for people: every workload by uid."""
        return {
            **{uid: proxy.dump() for uid, proxy in self._current.items()},
            **{f"{proxy.context.uid} (draining)": proxy.dump() for proxy in self._draining},
        }

    def all(self) -> tuple[WorkloadProxy, ...]:
        """Every proxy, draining ones too."""
        return (*self._current.values(), *self._draining)

    def tunnels(self) -> Iterator[TunnelConnection]:
        """Every open tunnel; while they are gone through, some may open and end."""
        for proxy in self.all():
            yield from proxy.tunnels()

    def handshakes(self) -> tuple[int, int]:
        """TLS handshakes since the start of the process: as the server, as the client."""
        now = [proxy.statistics() for proxy in self.all()]
        return (
            self._handshakes_in + sum(each.inbound_handshakes for each in now),
            self._handshakes_out + sum(each.outbound_handshakes for each in now),
        )

    def _make(self, workload: WorkloadInfo, network: PodNetwork) -> WorkloadProxy:
        around = self._around
        context = Context(
            uid=workload.uid,
            identity=workload.identity,
            reactor=around.reactor,
            mesh=around.mesh,
            svids=around.svids,
            network=network,
            journal=around.journal,
            open=OpenConnections(),
            chance=around.chance,
            cluster=around.cluster,
            response_baggage=around.response_baggage,
            names=around.names,
            socks=around.socks,
        )
        return WorkloadProxy(context, self._drained)

    async def _known(self, workload: WorkloadInfo) -> None:
        while not self._around.mesh.version:  # The process has just begun; it gives up by itself.
            await self._changed.wait()
        with trio.move_on_after(KNOWN_DEADLINE):
            while (known := self._around.mesh.workload(workload.uid)) is None:
                await self._changed.wait()
            if known.identity != workload.identity:
                raise Unavailable(f"the control plane knows {workload.uid} as {known.identity}")
            return
        raise Unavailable(f"the control plane does not know {workload.uid}")

    async def _certified(self, identity: SpiffeId) -> None:
        with trio.move_on_after(CERTIFICATE_DEADLINE):
            await self._around.svids.get(identity)
            return
        raise Unavailable(f"no certificate for {identity} within {CERTIFICATE_DEADLINE:g} s")

    async def _empty(self) -> None:
        while self._draining:
            await self._changed.wait()

    def _drained(self, proxy: WorkloadProxy) -> None:
        uid = proxy.context.uid
        self._draining.discard(proxy)
        self.ended += 1
        ended = proxy.statistics()
        self._handshakes_in += ended.inbound_handshakes
        self._handshakes_out += ended.outbound_handshakes
        self._forget_certificate(proxy.context.identity)
        if uid not in self._current and not self.is_draining(uid) and self.on_drained is not None:
            self.on_drained(uid)
        self._changed.set()
        self._changed = trio.Event()

    def _forget_certificate(self, identity: SpiffeId) -> None:
        if all(proxy.context.identity != identity for proxy in self.all()):
            self._around.svids.forget(identity)
