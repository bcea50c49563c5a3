"""The life of the process: follow control and the agent, serve, and leave politely.

Started by the fabric in a node's network namespace, or by anybody who sets the same environment. It ends
on SIGTERM, within a deadline; or when a newer ztunnel serves the node and the last connection has ended,
however long that takes.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import trio

from ambient.engine.follow import Follow, control_socket
from ambient.engine.frugal import release_unused
from ambient.engine.nursery import plain_nursery
from ambient.engine.overload import RefusalLog, watch_memory
from ambient.engine.pages import Routes, serve
from ambient.engine.reactor import Reactor
from ambient.engine.svids import SvidCache
from ambient.errors import Unavailable
from ztunnel.admin import Inside, admin_routes, ready_routes
from ztunnel.desk import serve_desk
from ztunnel.dns_metrics import DnsMetrics
from ztunnel.dns_plan import nameservers
from ztunnel.exposition import metrics_routes
from ztunnel.handover import Handover
from ztunnel.inpod import AgentFollower
from ztunnel.journal import Journal
from ztunnel.levels import Levels, parse_levels
from ztunnel.mesh_file import MeshFile
from ztunnel.metrics import TcpMetrics
from ztunnel.name_server import Names
from ztunnel.network import NetnsNetwork, PodNetwork
from ztunnel.own_ports import OwnPorts
from ztunnel.proxies import Around, Proxies
from ztunnel.revoked import watch_revocations
from ztunnel.settings import ADMIN_PORT, METRICS_PORT, READY_PORT, Settings

log = logging.getLogger("ztunnel")

# How long control may be silent before a new process goes by what the last one knew. It answers within
# milliseconds, while the agent hands over listeners and keys, which takes half as long as this; longer would
# be a pause for everybody who connects. Picked, not measured.
CONTROL_SECONDS = 0.1
# Between looks whether something has been started, whose memory is then given back: 5 ms of work, which must
# not add to the wait of those who connect meanwhile. Picked, not measured.
FRUGAL_SECONDS = 3.0


class Daemon:
    """Everything of one ztunnel, put together.

    Args:
        control: The connection to the control plane, ours to close.
        network: Makes a pod's network from the descriptor that the agent sent, as in ``AgentFollower``.
    """

    def __init__(
        self,
        reactor: Reactor,
        settings: Settings,
        control: socket.socket,
        network: Callable[[Reactor, int], PodNetwork] = NetnsNetwork,
    ) -> None:
        self._settings = settings
        self._headroom = reactor.headroom
        self._headroom.on_refused = RefusalLog(reactor, log.warning).refused
        self._headroom.limit_by_rlimit()
        self._follow = Follow(control, reactor=reactor)
        self._svids = SvidCache(self._follow)
        self._reactor = reactor
        self._levels = Levels()
        self._levels.apply(parse_levels(settings.levels))
        self._names = names(settings)
        self._stop = trio.Event()
        self._journal = Journal(
            reactor, TcpMetrics(settings.cluster), json=settings.json_log, levels=self._levels
        )
        self._proxies = Proxies(
            Around(
                reactor=reactor,
                mesh=self._follow.mesh,
                svids=self._svids,
                journal=self._journal,
                chance=random.random,
                cluster=settings.cluster,
                response_baggage=settings.response_baggage,
                names=self._names,
                socks=settings.socks,
            )
        )
        self._own = OwnPorts({ADMIN_PORT: "127.0.0.1", METRICS_PORT: "", READY_PORT: ""})
        self._agent = AgentFollower(
            settings.inpod_uds,
            self._proxies,
            functools.partial(network, reactor),
            Handover(self._svids, self._own),
        )
        self._agent.on_snapshot = self._say_ready
        self._agent.on_retired = self._retire
        self._svids.on_renewed = self._agent.renewed
        self._file = MeshFile(settings.snapshot_path, self._follow.mesh)
        self._keeping = trio.CancelScope()
        self._follow.on_update = self._updated
        self._synchronised = False
        self._control_gone = trio.Event()
        self._retired = trio.Event()
        self._ready_fd = settings.ready_fd
        self._serving_http = trio.CancelScope()

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, or until nothing is left for a retired process to do."""
        with _stop_signals(self._stop):
            async with plain_nursery() as nursery:
                nursery.start_soon(self._watch, nursery.cancel_scope)
                nursery.start_soon(self._watch_retirement, nursery.cancel_scope)
                nursery.start_soon(self._follow_control)
                nursery.start_soon(self._svids.run)
                nursery.start_soon(self._serve_http)
                nursery.start_soon(watch_memory, self._headroom, self._settings.memory_limit)
                nursery.start_soon(watch_revocations, self._reactor, self._proxies.tunnels)
                # Its orders may come first: whoever is to be served waits for the mesh.
                nursery.start_soon(self._agent.run)
                await self._learn()
                self._synchronised = True
                nursery.start_soon(self._keep_what_is_known)
                nursery.start_soon(self._give_back)

    def pending(self) -> list[str]:
        """What readiness waits for."""
        waiting = [] if self._synchronised else ["state manager"]
        return waiting if self._agent.snapshot_received else [*waiting, "workload proxy manager"]

    async def _watch(self, scope: trio.CancelScope) -> None:
        await self._stop.wait()
        await self._finish()
        scope.cancel()

    async def _watch_retirement(self, scope: trio.CancelScope) -> None:
        await self._retired.wait()
        await self._proxies.emptied()
        log.info("retired, and nothing is open any more")
        self._agent.stop()
        self._journal.flush()
        scope.cancel()

    async def _learn(self) -> None:
        """Return when there is a mesh to go by: control's, or if it is silent what the last process knew.

        Raises:
            Unavailable: control has gone, and there is nothing to go by.
        """
        with trio.move_on_after(CONTROL_SECONDS):
            async with trio.open_nursery() as nursery:
                for source in (self._follow.synchronised, self._control_gone.wait):
                    nursery.start_soon(_then_cancel, source, nursery.cancel_scope)
        known = None if self._follow.knows else self._file.load()
        if known is not None and self._follow.assume(known):
            count = len(known.workloads)
            log.warning("control does not speak: going by what the last process knew, %d workloads", count)
        if self._control_gone.is_set() and not self._follow.knows:
            raise Unavailable("control went away before it had said anything")
        await self._follow.synchronised()

    async def _give_back(self) -> None:
        """Twice: the first handshakes read large parts of libraries once, as the start has done."""
        await trio.sleep(FRUGAL_SECONDS)
        release_unused()
        began = self._proxies.handshakes()
        # A look now and then is simpler than an event at each handshake.
        while self._proxies.handshakes() == began:  # noqa: ASYNC110
            await trio.sleep(FRUGAL_SECONDS)
        release_unused()

    async def _keep_what_is_known(self) -> None:
        with self._keeping:
            await self._file.keep()

    def _updated(self) -> Iterator[None]:
        self._file.changed()
        return self._proxies.mesh_changed()

    def _retire(self) -> None:
        """A newer process has the node's ports, too."""
        self._keeping.cancel()
        self._serving_http.cancel()
        self._own.release()
        self._retired.set()

    def _say_ready(self) -> None:
        fd, self._ready_fd = self._ready_fd, -1
        if fd >= 0:
            with suppress(OSError):  # Whoever waited has given up; that is for them to say.
                os.write(fd, b"ready\n")
            os.close(fd)

    async def _follow_control(self) -> None:
        try:
            await self._follow.run()
        except* Unavailable:  # Reading and writing may both have noticed.
            self._control_gone.set()
            if self._synchronised:
                # What we know is still true enough to serve by, until the certificates end.
                log.error("control has gone, serving on without it")

    async def _finish(self) -> None:
        log.info("draining, at most %g s", self._settings.drain_seconds)
        self._agent.stop()
        await self._proxies.drain(self._settings.drain_seconds)
        self._journal.flush()

    async def _serve_http(self) -> None:
        inside = Inside(
            self._settings,
            self._follow.mesh,
            self._proxies,
            self._svids.certificates,
            self._reactor,
            self._levels,
            self._stop.set,
        )
        admin = admin_routes(inside)
        dns = self._names.metrics if self._names is not None else None
        metrics = metrics_routes(self._journal.metrics, self._proxies, dns, self._follow.heard)
        ready = ready_routes(self.pending)
        with self._serving_http:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(functools.partial(self._serve_port, ADMIN_PORT, admin, local_only=True))
                if self._settings.admin_uds:
                    nursery.start_soon(serve_desk, self._settings.admin_uds, admin)
                nursery.start_soon(self._serve_port, METRICS_PORT, metrics)
                nursery.start_soon(self._serve_port, READY_PORT, ready)

    async def _serve_port(self, port: int, routes: Routes, *, local_only: bool = False) -> None:
        sock = await self._own.listener(port)
        self._agent.own_opened()
        await serve(sock, routes, local_only=local_only)


async def run(reactor: Reactor, settings: Settings) -> None:
    """Run one ztunnel on the inherited connection to control.

    Raises:
        ConfigError: there is none.
        Unavailable: control went away.
    """
    if settings.ignored:
        log.warning("set, but without effect in this ztunnel: %s", ", ".join(settings.ignored))
    reactor.on_failure = _log_failure
    reactor.limits = settings.limits
    if settings.crl_path:
        # Only who keeps lists pays for what reads them: ``cryptography``, 4 MB.
        from ambient.engine.revocations import Revocations

        reactor.revocations = Revocations(settings.crl_path, log.warning)
    await Daemon(reactor, settings, control_socket()).run()


async def _then_cancel(source: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await source()
    scope.cancel()


def names(settings: Settings, resolv_conf: str = "/etc/resolv.conf") -> Names | None:
    """What the pods' name servers share; None if there are to be none."""
    if not settings.dns_capture:
        return None
    servers = settings.dns_upstreams
    if not servers:
        with suppress(OSError):
            servers = nameservers(Path(resolv_conf).read_text(errors="replace"))
    metrics = DnsMetrics(settings.cluster)
    return Names(servers=servers, preferred_namespace=settings.preferred_namespace, metrics=metrics)


def _log_failure(exc: Exception) -> None:
    log.error("a connection failed on a bug of ours: %r", exc, exc_info=exc)


@contextmanager
def _stop_signals(stop: trio.Event) -> Iterator[None]:
    """SIGTERM or SIGINT sets *stop*; the old handlers are back afterwards."""
    token = trio.lowlevel.current_trio_token()

    def stopped(number: int, frame: object) -> None:
        token.run_sync_soon(stop.set, idempotent=True)

    old = {number: signal.signal(number, stopped) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
