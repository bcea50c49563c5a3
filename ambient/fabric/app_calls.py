"""How the built-in workload calls others: names resolved and kept for a while, connections kept alive.

Names go the way every program's names go (``getaddrinfo``, so the pod's resolv.conf), in a thread of trio's;
an answer older than ``FRESH_SECONDS`` is still used while a new one is fetched.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeAlias

import trio

from ambient.engine.channel import Channel
from ambient.engine.dial import dial
from ambient.engine.http_client import ClientConnection, HttpPool, OnChannel
from ambient.engine.reactor import Reactor
from ambient.fabric.app_settings import Callee
from ambient.wire.http1_heads import Header, RequestHead, ResponseHead, encode_request, header

FRESH_SECONDS = 5.0
# Connections are renewed now and then, so that a callee's new endpoints, and a mesh switched on, are noticed
# by a workload that never pauses. Picked, not measured.
CONNECTION_AGE_SECONDS = 5.0
# A callee that does not answer by then counts as failed.
CALL_DEADLINE = 15.0

# Headers that a well-behaved application passes on, so that requests can be correlated.
PASSED_ON = frozenset((b"x-request-id", b"traceparent", b"tracestate", b"baggage"))

OnAddresses: TypeAlias = Callable[["list[str] | OSError"], None]


class Names:
    """A cache in front of ``getaddrinfo``."""

    def __init__(self, reactor: Reactor, nursery: trio.Nursery) -> None:
        self._reactor = reactor
        self._nursery = nursery
        self._token = trio.lowlevel.current_trio_token()
        self._known: dict[str, tuple[list[str], float]] = {}
        self._waiting: dict[str, list[OnAddresses]] = {}

    def resolve(self, name: str, on_addresses: OnAddresses) -> None:
        """Give *on_addresses* the addresses of *name*, now if they are known."""
        known = self._known.get(name)
        if known is not None:
            on_addresses(known[0])
            if known[1] > self._reactor.now():
                return
        waiting = self._waiting.get(name)
        if waiting is None:
            waiting = self._waiting[name] = []
            self._token.run_sync_soon(self._nursery.start_soon, self._look_up, name)
        if known is None:
            waiting.append(on_addresses)

    async def _look_up(self, name: str) -> None:
        answer: list[str] | OSError
        try:
            found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
            answer = list(dict.fromkeys(str(entry[4][0]) for entry in found))
            self._known[name] = answer, self._reactor.now() + FRESH_SECONDS
        except OSError as exc:
            self._known.pop(name, None)
            answer = exc
        for on_addresses in self._waiting.pop(name, []):
            on_addresses(answer)


class Caller:
    """Calls callees; one pool for the whole workload."""

    def __init__(self, reactor: Reactor, names: Names) -> None:
        self.reactor = reactor
        self._names = names
        self.pool = HttpPool(reactor, self._dial, max_age=CONNECTION_AGE_SECONDS)

    def call(self, callee: Callee, headers: list[Header], on_done: OnResult) -> None:
        """GET *callee*; *on_done* is called once."""
        Call(self, callee, headers, on_done).start()

    def _dial(self, key: tuple[str, int], on_channel: OnChannel) -> None:
        host, port = key

        def resolved(addresses: list[str] | OSError) -> None:
            if isinstance(addresses, OSError):
                on_channel(addresses)
            else:
                self._try(list(addresses), port, on_channel)

        self._names.resolve(host, resolved)

    def _try(self, addresses: list[str], port: int, on_channel: OnChannel) -> None:
        """Dial one address after the other."""
        address = addresses.pop(0)

        def dialled(channel: Channel | OSError) -> None:
            if isinstance(channel, OSError) and addresses:
                self._try(addresses, port, on_channel)
            else:
                on_channel(channel)

        dial(self.reactor, (address, port), dialled)


class Call:
    """One request to a callee: reads the whole answer, counts its bytes."""

    __slots__ = ("_attempts", "_callee", "_caller", "_conn", "_on_done", "_timer", "_wire", "size", "status")

    def __init__(self, caller: Caller, callee: Callee, headers: list[Header], on_done: OnResult) -> None:
        self.status = 0
        self.size = 0
        self._caller = caller
        self._callee = callee
        self._on_done: OnResult | None = on_done
        self._conn: ClientConnection | None = None
        self._attempts = 0
        head = RequestHead(b"GET", callee.path.encode(), callee.authority.encode(), headers)
        self._wire = encode_request(head)
        self._timer = caller.reactor.call_later(CALL_DEADLINE, lambda: self._failed("no answer in time"))

    def start(self) -> None:
        """Send it on a pooled connection or on a new one."""
        key = (self._callee.host, self._callee.port)
        conn = self._caller.pool.take(key) if not self._attempts else None
        self._attempts += 1
        if conn is not None:
            self._send(conn)
        else:
            self._caller.pool.open(key, self._opened)

    def _opened(self, conn: ClientConnection | Exception) -> None:
        if isinstance(conn, Exception):
            self._failed(str(conn) or type(conn).__name__)
        elif self._on_done is None:
            conn.close()
        else:
            self._send(conn)

    def _send(self, conn: ClientConnection) -> None:
        self._conn = conn
        conn.begin(self, b"GET", self._wire)
        conn.end()

    def response_head(self, head: ResponseHead) -> None:
        self.status = head.status

    def response_body(self, data: bytes) -> None:
        self.size += len(data)

    def response_ended(self) -> None:
        self._conn = None
        self._done("")

    def upstream_writable(self) -> None:
        pass

    def upstream_lost(self, reason: str) -> None:
        conn, self._conn = self._conn, None
        if conn is not None and conn.reused and not self.status:
            self.start()
        else:
            self._failed(reason)

    def _failed(self, reason: str) -> None:
        self.status = 0
        self._done(reason)

    def _done(self, error: str) -> None:
        on_done, self._on_done = self._on_done, None
        self._timer.cancel()
        conn, self._conn = self._conn, None
        if conn is not None:
            conn.abort()
        if on_done is not None:
            on_done(self._callee, self.status, self.size, error)


OnResult: TypeAlias = Callable[[Callee, int, int, str], None]


def passed_on(headers: list[Header]) -> list[Header]:
    """The headers of a request that its calls repeat."""
    return [each for each in headers if each[0] in PASSED_ON] + [header("user-agent", "ambient-app")]
