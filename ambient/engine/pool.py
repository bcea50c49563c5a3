"""Pooled HBONE connections: one handshake for many streams.

Floor 2: obeys ``ambient.model.pool_plan``, which decides; here are the descriptors.

Trying again is harmless as long as nothing was answered: the application's bytes are sent only after the
200. So a request that lost a *reused* connection before its answer gets one more, on another; and so does
one that a *fresh* connection did not take (REFUSED_STREAM, or a GOAWAY that leaves it out): whoever leaves
the mesh and is back at once says so on what had knocked before. A fresh connection that dies is an answer.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import NamedTuple, TypeAlias

from ambient.engine.dial import dial_socket
from ambient.engine.reactor import Reactor, Timer
from ambient.engine.tls import TlsChannel, TlsContext, connect_tls, prepare_hbone
from ambient.engine.tunnel import (
    Headers,
    OnOpened,
    TunnelConnection,
    TunnelLost,
)
from ambient.model.pool_plan import Assign, Close, Fail, Instruction, Open, PoolKey, PoolPlan
from ambient.wire.hbone_budget import WindowBudget
from ambient.wire.hbone_headers import EncodedRequest

# How exactly idle connections are noticed; picked, not measured.
TICK_SECONDS = 10.0

# dialler(key, on_connected(TlsChannel | Exception)): dial, shake hands, verify.
OnConnected: TypeAlias = Callable[[TlsChannel | Exception], None]
Dialler: TypeAlias = Callable[[PoolKey, OnConnected], None]


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """The pool now, and since its start."""

    connections: int
    streams: int
    handshakes: int
    waiting: int


class _Request(NamedTuple):
    """Somebody who wants a stream."""

    key: PoolKey
    authority: str
    headers: Headers | EncodedRequest
    on_opened: OnOpened
    deadline: float | None
    retried: bool = False


class TunnelPool:
    """HBONE connections of one or many workloads, found by ``PoolKey``.

    Args:
        dialler: Makes the mutual-TLS channel for a key; ``hbone_dialler`` makes one.
        windows: Shared by the process's connections.
    """

    def __init__(
        self,
        reactor: Reactor,
        dialler: Dialler,
        *,
        plan: PoolPlan | None = None,
        windows: WindowBudget | None = None,
    ) -> None:
        self._reactor = reactor
        self._dialler = dialler
        limits = reactor.limits
        self._plan = plan or PoolPlan(
            max_streams=limits.streams_per_tunnel,
            idle_seconds=limits.pool_idle,
            max_age_seconds=limits.pool_max_age,
        )
        self._windows = windows
        self._tunnels: dict[int, TunnelConnection] = {}
        self._errors: dict[int, Exception] = {}
        # One callback a connection, not one a stream: of those there are thousands.
        self._returns: dict[int, Callable[[], None]] = {}
        self._handshakes = 0
        self._timer: Timer | None = None
        self._closed = False

    def open(
        self,
        key: PoolKey,
        authority: str,
        headers: Headers | EncodedRequest,
        on_opened: OnOpened,
        *,
        deadline: float | None = None,
    ) -> None:
        """Open a stream on a pooled connection, or on a new one; *on_opened* as in ``open_stream``.

        Concurrent first users share one handshake and all learn of its failure. A pooled connection
        that turns out dead before it answered is replaced once, and so is one that takes no streams.
        """
        request = _Request(key, authority, headers, on_opened, deadline)
        if self._closed:
            lost = TunnelLost("the pool is closed")
            self._reactor.call_soon(partial(on_opened, lost), _recorded)
            return
        leased = self._plan.lease(key)
        if leased is not None:
            self._assign(request, *leased)
            return
        self._obey(self._plan.request(key, request, self._reactor.now()))

    def close_where(self, matches: Callable[[PoolKey], bool]) -> None:
        """Let connections whose key *matches* end with their last stream, and use them no more."""
        self._obey(self._plan.retire_where(matches))

    def close(self) -> None:
        """End every connection and stream now."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for tunnel in list(self._tunnels.values()):
            tunnel.close()

    def statistics(self) -> PoolStatistics:
        """What it holds."""
        tunnels = self._tunnels.values()
        streams = sum(tunnel.streams for tunnel in tunnels)
        return PoolStatistics(len(tunnels), streams, self._handshakes, self._plan.waiting())

    def connections(self) -> list[TunnelConnection]:
        """The live tunnels, for whoever looks into the process."""
        return list(self._tunnels.values())

    # Obeying the plan ------------------------------------------------------------------------------

    def _obey(self, instructions: list[Instruction]) -> None:
        if not instructions:
            return
        for instruction in instructions:
            match instruction:
                case Open(key, connection):
                    self._dial(key, connection)
                case Assign(request, connection, reused):
                    assert isinstance(request, _Request)
                    self._assign(request, connection, reused)
                case Fail(request, connection):
                    assert isinstance(request, _Request)
                    self._later(request, self._errors.get(connection, TunnelLost("no connection")))
                case Close(connection):
                    tunnel = self._tunnels.pop(connection, None)
                    if tunnel is not None:
                        tunnel.goaway()
        self._arm()

    def _dial(self, key: PoolKey, connection: int) -> None:
        try:
            self._dialler(key, partial(self._connected, connection))
        except Exception as exc:
            # Such as no certificate yet; an answer now would come before ``open`` has returned.
            self._reactor.call_soon(partial(self._connected, connection, exc), _recorded)

    def _connected(self, connection: int, result: TlsChannel | Exception) -> None:
        if isinstance(result, Exception):
            self._errors[connection] = result
            self._obey(self._plan.failed(connection))
            del self._errors[connection]
            return
        self._handshakes += 1
        if self._closed:
            result.abort()
            return
        self._tunnels[connection] = TunnelConnection(
            self._reactor,
            result,
            on_closed=partial(self._gone, connection),
            on_available=partial(self._available, connection),
            windows=self._windows,
        )
        self._returns[connection] = partial(self._released, connection)
        self._obey(self._plan.opened(connection, self._reactor.now()))

    def _assign(self, request: _Request, connection: int, reused: bool) -> None:
        refused = partial(self._refused, request, connection, reused)
        tunnel = self._tunnels.get(connection)
        if tunnel is None:
            refused(TunnelLost("the connection is gone", retryable=True))
            return
        tunnel.open_stream(
            request.authority,
            request.headers,
            request.on_opened,
            deadline=request.deadline,
            on_refused=refused,
            on_finished=self._returns[connection],
        )

    def _refused(self, request: _Request, connection: int, reused: bool, answer: Exception) -> None:
        """*connection* has not given the stream."""
        lost = isinstance(answer, TunnelLost) and answer.retryable and (reused or answer.unprocessed)
        if lost and not request.retried and not self._closed:
            self._obey(self._plan.retire(connection))
            self._released(connection)
            again = request._replace(retried=True)
            self._obey(self._plan.request(request.key, again, self._reactor.now()))
            return
        self._released(connection)
        request.on_opened(answer)

    def _released(self, connection: int) -> None:
        instructions = self._plan.released(connection, monotonic())
        if instructions:
            self._obey(instructions)

    def _available(self, connection: int) -> None:
        tunnel = self._tunnels.get(connection)
        if tunnel is None:
            return
        if tunnel.wire.closing:
            self._obey(self._plan.retire(connection))
        elif tunnel.wire.settled:
            self._obey(self._plan.limited(connection, tunnel.wire.peer_max_streams))

    def _gone(self, connection: int, exc: Exception | None) -> None:
        self._tunnels.pop(connection, None)
        self._returns.pop(connection, None)
        self._errors[connection] = exc or TunnelLost("the peer closed the connection")
        self._obey(self._plan.gone(connection))
        del self._errors[connection]

    def _later(self, request: _Request, exc: Exception) -> None:
        self._reactor.call_soon(partial(request.on_opened, exc), _recorded)

    def _arm(self) -> None:
        if self._timer is None and self._tunnels and not self._closed:
            self._timer = self._reactor.call_later(TICK_SECONDS, self._tick, _recorded)

    def _tick(self) -> None:
        self._timer = None
        self._obey(self._plan.tick(self._reactor.now()))
        self._arm()


def hbone_dialler(
    reactor: Reactor,
    context: Callable[[PoolKey], TlsContext],
    *,
    netns_fd: Callable[[PoolKey], int | None] = lambda key: None,
    mark: int | None = None,
) -> Dialler:
    """The ordinary dialler: TCP from the source's namespace, then mutual TLS.

    Args:
        context: The client context for a key; may raise ``Unavailable``.
        netns_fd: Where to dial from; None: here.
    """

    def dialler(key: PoolKey, on_connected: OnConnected) -> None:
        tls = context(key)

        def connected(result: socket.socket | OSError) -> None:
            if isinstance(result, OSError):
                on_connected(result)
                return
            prepare_hbone(reactor, result)
            connect_tls(reactor, result, tls, key.identities, on_connected)

        dial_socket(reactor, (key.ip, key.port), connected, netns_fd=netns_fd(key), mark=mark)

    return dialler


def _recorded(exc: Exception) -> None:
    """The reactor has recorded *exc*; the pool itself goes on."""
