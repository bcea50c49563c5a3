"""The life of one waypoint or sidecar: follow control, get a certificate, serve, and leave politely."""

from __future__ import annotations

import logging
import random
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ambient.engine import collector
from ambient.engine.follow import Follow, control_socket
from ambient.engine.netns import listen_in
from ambient.engine.overload import RefusalLog
from ambient.engine.reactor import Reactor
from ambient.engine.svids import SvidCache
from ambient.errors import Unavailable
from ambient.model.identity import DEFAULT_TRUST_DOMAIN, SpiffeId
from ambient.model.workload import Workload
from waypoint.context import Context, PodNetwork
from waypoint.gateway import Gateway
from waypoint.journal import Journal
from waypoint.metrics import RequestMetrics
from waypoint.settings import METRICS_PORT, READY_PORT, Settings
from waypoint.sidecar import Sidecar
from waypoint.status import Status

log = logging.getLogger("waypoint")

# Clients that keep a connection open learn with their next answer that it ends; those that stay silent for
# longer than this are closed. Picked, not measured.
IDLE_GRACE_SECONDS = 1.0
# How often a drain looks whether it is done.
LOOK_SECONDS = 0.05


class Daemon:
    """Everything of one process, put together."""

    def __init__(self, reactor: Reactor, settings: Settings, role: str, control: socket.socket) -> None:
        self._reactor = reactor
        self._settings = settings
        self._follow = Follow(control, reactor=reactor)
        self._svids = SvidCache(self._follow)
        self._identity = SpiffeId(DEFAULT_TRUST_DOMAIN, settings.namespace, settings.service_account)
        self._journal = Journal(reactor, RequestMetrics(settings.cluster), lines=settings.access_log)
        context = Context(
            reactor=reactor,
            mesh=self._follow.mesh,
            svids=self._svids,
            network=PodNetwork(reactor, captured=role == "sidecar"),
            journal=self._journal,
            uid=settings.pod_uid,
            own=None if role == "waypoint" else own_workload(settings),
            chance=random.random,
            cluster=settings.cluster,
        )
        self._proxy: Gateway | Sidecar = Gateway(context) if role == "waypoint" else Sidecar(context)
        self._follow.on_update = self._proxy.mesh_changed
        self._ready = False
        self._served = False  # Ever.

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain; a control that goes away later changes nothing."""
        with _stop_signals() as stop:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, stop, nursery.cancel_scope)
                nursery.start_soon(self._follow_control)
                nursery.start_soon(self._svids.run)
                await self._follow.synchronised()
                await self._svids.get(self._identity)
                self._proxy.start()
                Status(self._reactor, listen_in(None, METRICS_PORT), {"/metrics": self._metrics})
                Status(self._reactor, listen_in(None, READY_PORT), {"/healthz/ready": self._readiness})
                self._ready = self._served = True
                collector.settle()
                log.info("ready: %s", self._identity)

    async def drain(self) -> None:
        """Take no more work, let what is under way end, at most for the drain's time."""
        self._ready = False
        self._proxy.drain()
        with trio.move_on_after(self._settings.drain_seconds):
            with trio.move_on_after(IDLE_GRACE_SECONDS):
                await self._until_empty()
            for proxy in self._proxy.servers:
                proxy.server.close_idle()
            await self._until_empty()
        self._proxy.abort()
        self._journal.flush()

    async def _until_empty(self) -> None:
        # Three kinds of connections end in any order: looking now and then is simpler than three events.
        while self._proxy.open or any(each.server.connections for each in self._proxy.servers):  # noqa: ASYNC110
            await trio.sleep(LOOK_SECONDS)

    async def _watch(self, stop: trio.Event, scope: trio.CancelScope) -> None:
        await stop.wait()
        log.info("draining, at most %g s", self._settings.drain_seconds)
        await self.drain()
        scope.cancel()

    async def _follow_control(self) -> None:
        try:
            await self._follow.run()
        except* Unavailable:  # Reading and writing may both have noticed.
            if not self._served:
                raise
            # What we know is still true enough to serve by, until the certificates end.
            log.error("control has gone, serving on without it")

    def _metrics(self) -> tuple[int, str]:
        handshakes = self._proxy.handshakes + self._proxy.upstreams.handshakes()
        own = f"# TYPE ambient_tls_handshakes_total counter\nambient_tls_handshakes_total {handshakes}\n"
        return 200, self._journal.metrics.exposition() + own

    def _readiness(self) -> tuple[int, str]:
        return (200, "ready\n") if self._ready else (503, "not ready\n")


def own_workload(settings: Settings) -> Workload:
    """What a sidecar knows of its pod by itself: enough to route, before control has published it."""
    return Workload(
        uid=settings.pod_uid,
        name=settings.pod_name,
        namespace=settings.namespace,
        service_account=settings.service_account,
        addresses=(settings.pod_ip,) if settings.pod_ip else (),
        node=settings.node,
    )


async def run(reactor: Reactor, settings: Settings, role: str) -> None:
    """Run one proxy on the inherited connection to control.

    Raises:
        ConfigError: there is none.
        Unavailable: control went away, or refused the certificate.
    """
    reactor.on_failure = _log_failure
    reactor.limits = settings.limits
    reactor.headroom.on_refused = RefusalLog(reactor, log.warning).refused
    reactor.headroom.limit_by_rlimit()
    if settings.crl_path:
        from ambient.engine.revocations import Revocations  # Takes ``cryptography``: see ztunnel.

        reactor.revocations = Revocations(settings.crl_path, log.warning)
    try:
        await Daemon(reactor, settings, role, control_socket()).run()
    except* Unavailable as group:
        raise Unavailable(str(_first(group))) from group


def _first(group: BaseExceptionGroup[Unavailable]) -> BaseException:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


def _log_failure(exc: Exception) -> None:
    log.error("a connection failed on a bug of ours: %r", exc, exc_info=exc)


@contextmanager
def _stop_signals() -> Iterator[trio.Event]:
    """An event that SIGTERM or SIGINT sets; the old handlers are back afterwards."""
    stop = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def stopped(number: int, frame: object) -> None:
        token.run_sync_soon(stop.set, idempotent=True)

    old = {number: signal.signal(number, stopped) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
