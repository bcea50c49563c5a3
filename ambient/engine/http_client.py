"""The client's half of an HTTP/1.1 exchange: pooled connections that carry one request at a time.

Floor 2. The pool knows connections by a key of its owner's; how a key is dialled (plain, mutual TLS, through
a tunnel) is the owner's ``dialler``. Who reads an answer is a ``ResponseSink``::

    sink.response_head(head)             once; informational heads are swallowed
    sink.response_body(data) *
    sink.response_ended()
    sink.upstream_writable()             after ``connection.writable`` was False
    sink.upstream_lost(reason)           instead of all that is missing; nothing follows
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from ambient.engine.channel import Channel
from ambient.engine.reactor import Reactor, Timer
from ambient.errors import Unavailable
from ambient.wire.http1 import ResponseParser
from ambient.wire.http1_heads import END, Refused, ResponseHead

# Servers close idle connections, many after 60 s or 75 s (nginx): be first, it avoids a race.
IDLE_SECONDS = 45.0
# How often idle connections are looked at.
SWEEP_SECONDS = 5.0
# Envoy's default circuit breaker (max_connections).
MAX_CONNECTIONS = 1024


class ResponseSink(Protocol):
    """Whoever reads one answer; see the module for the order of calls."""

    def response_head(self, head: ResponseHead) -> None:
        """The answer's head."""
        ...

    def response_body(self, data: bytes) -> None:
        """A piece of the answer's body."""
        ...

    def response_ended(self) -> None:
        """The answer is complete."""
        ...

    def upstream_writable(self) -> None:
        """There is room for more of the request."""
        ...

    def upstream_lost(self, reason: str) -> None:
        """The connection is over before the answer was."""
        ...


OnChannel: TypeAlias = Callable[["Channel | Exception"], None]
Dialler: TypeAlias = Callable[[Any, OnChannel], None]
OnConnection: TypeAlias = Callable[["ClientConnection | Exception"], None]


@dataclass(frozen=True, slots=True)
class HttpPoolStatistics:
    """The pool now, and since its start."""

    connections: int
    idle: int
    dials: int
    reuses: int


class HttpPool:
    """Keep-alive connections by key; the newest idle one is used first, so that the others can go.

    Args:
        dialler: ``dialler(key, on_channel)`` gives a channel that was not started, or the reason why not.
        max_age: Seconds after which a connection is not used again, so that new routes take hold; 0: never.
    """

    def __init__(self, reactor: Reactor, dialler: Dialler, *, max_age: float = 0.0) -> None:
        self._reactor = reactor
        self._max_age = max_age
        self._dialler = dialler
        self._idle: dict[Hashable, list[ClientConnection]] = {}
        self._counts: dict[Hashable, int] = {}
        self._all: set[ClientConnection] = set()
        self._sweeper: Timer | None = None
        self._dials = self._reuses = 0
        self._closed = False
        self.tick = 0

    def take(self, key: Hashable) -> ClientConnection | None:
        """An idle connection, if there is one."""
        idle = self._idle.get(key)
        if not idle:
            return None
        self._reuses += 1
        connection = idle.pop()
        connection.reused = True
        return connection

    def open(self, key: Hashable, on_connection: OnConnection) -> None:
        """Dial a new connection; *on_connection* may be called before this returns."""
        count = self._counts.get(key, 0)
        if count >= MAX_CONNECTIONS or self._closed:
            on_connection(Unavailable("too many connections to this upstream"))
            return
        self._counts[key] = count + 1
        self._dials += 1
        self._dialler(key, lambda channel: self._opened(key, channel, on_connection))

    def give_back(self, connection: ClientConnection) -> None:
        """*connection* carries no exchange any more and may carry another."""
        if self._closed or self._too_old(connection):
            connection.close()
            return
        connection.idle_since = self.tick
        self._idle.setdefault(connection.key, []).append(connection)

    def _too_old(self, connection: ClientConnection) -> bool:
        return self._max_age > 0 and self._reactor.now() - connection.opened > self._max_age

    def gone(self, connection: ClientConnection) -> None:
        """*connection* is over."""
        if connection in self._all:
            self._all.discard(connection)
            self._forget_one(connection.key)
        idle = self._idle.get(connection.key)
        if idle and connection in idle:
            idle.remove(connection)

    def close_where(self, matches: Callable[[Any], bool]) -> None:
        """Close idle connections whose key *matches*; busy ones are not used again."""
        for connection in [each for each in self._all if matches(each.key)]:
            connection.retire()

    def close(self) -> None:
        """Close what is idle now, and everything else when its exchange is over."""
        self._closed = True
        self.close_where(lambda key: True)

    def statistics(self) -> HttpPoolStatistics:
        """What it holds."""
        return HttpPoolStatistics(
            len(self._all), sum(len(idle) for idle in self._idle.values()), self._dials, self._reuses
        )

    def _opened(self, key: Hashable, channel: Channel | Exception, on_connection: OnConnection) -> None:
        if isinstance(channel, Exception):
            self._forget_one(key)
            on_connection(channel)
            return
        connection = ClientConnection(self, key, channel, self._reactor.now())
        self._all.add(connection)
        if self._sweeper is None:
            self._sweeper = self._reactor.call_later(SWEEP_SECONDS, self._sweep)
        channel.start(connection)
        on_connection(connection)

    def _forget_one(self, key: Hashable) -> None:
        left = self._counts.get(key, 0) - 1
        if left > 0:
            self._counts[key] = left
        else:
            self._counts.pop(key, None)
            self._idle.pop(key, None)

    def _sweep(self) -> None:
        self._sweeper = None
        self.tick += 1
        oldest = self.tick - IDLE_SECONDS / SWEEP_SECONDS
        for idle in list(self._idle.values()):
            for connection in [each for each in idle if each.idle_since < oldest or self._too_old(each)]:
                connection.retire()
        if self._all:
            self._sweeper = self._reactor.call_later(SWEEP_SECONDS, self._sweep)


class ClientConnection:
    """One connection to an upstream.

    Attributes:
        key: The pool's key.
        opened: When, by the reactor's clock.
        reused: It carried an exchange before; its peer may have closed it unseen.
    """

    __slots__ = (
        "_channel", "_keep", "_parser", "_pool", "_retired", "_sending", "_sink",
        "idle_since", "key", "opened", "reused",
    )  # fmt: skip

    def __init__(self, pool: HttpPool, key: Hashable, channel: Channel, opened: float) -> None:
        self.key = key
        self.opened = opened
        self.reused = False
        self.idle_since = 0
        self._pool = pool
        self._channel = channel
        self._parser = ResponseParser()
        self._sink: ResponseSink | None = None
        self._sending = False
        self._keep = True
        self._retired = False

    @property
    def channel(self) -> Channel:
        """Its bytes, for addresses and counters."""
        return self._channel

    @property
    def writable(self) -> bool:
        """False: send no more of the request until ``upstream_writable``."""
        return self._channel.writable

    def begin(self, sink: ResponseSink, method: bytes, data: bytes) -> None:
        """Send *data* (a head, perhaps with all its body); *sink* gets the answer. Ends with ``end``."""
        self._sink = sink
        self._sending = True
        self._parser.expect(method)
        self._channel.write(data)

    def write(self, data: bytes) -> None:
        """Send more of the request."""
        self._channel.write(data)

    def end(self) -> None:
        """The request is complete."""
        self._sending = False
        if self._sink is None:
            self._finished()

    def pause(self) -> None:
        """Deliver no more of the answer until ``resume``."""
        self._channel.pause()

    def resume(self) -> None:
        """Undo ``pause``."""
        self._channel.resume()

    def abort(self) -> None:
        """Give up the exchange and the connection; the sink is told nothing more."""
        self._sink = None
        self._keep = False
        self._pool.gone(self)
        self._channel.abort()

    def close(self) -> None:
        """Close after what was written."""
        self._keep = False
        self._pool.gone(self)
        self._channel.close()

    def retire(self) -> None:
        """Close now if idle, else after the exchange under way."""
        if self._sink is None and not self._sending:
            self.close()
        else:
            self._retired = True

    # From the channel ----------------------------------------------------------------------

    def data_received(self, data: memoryview) -> None:
        """The upstream sent something."""
        for event in self._parser.receive_data(data):
            sink = self._sink
            if sink is None:
                # Nobody asked, or the exchange was given up: such a connection is of no more use.
                self.abort()
                return
            self._deliver(event, sink)

    def _deliver(self, event: Any, sink: ResponseSink) -> None:
        if event is END:
            self._ended(sink)
        elif type(event) is bytes:
            sink.response_body(event)
        elif type(event) is ResponseHead:
            if event.status >= 200:
                self._keep = event.keep_alive
                sink.response_head(event)
        else:
            self._refused(event)

    def eof_received(self) -> None:
        """The upstream sends no more."""
        self._keep = False
        for event in self._parser.receive_eof():
            if self._sink is not None:
                self._deliver(event, self._sink)
        if self._sink is None:
            self.close()

    def write_ready(self) -> None:
        """The channel has room again."""
        if self._sink is not None:
            self._sink.upstream_writable()

    def channel_closed(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._pool.gone(self)
        self._keep = False
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.upstream_lost(f"upstream closed: {exc}" if exc else "upstream closed")

    # Inside --------------------------------------------------------------------------------

    def _refused(self, refused: Refused) -> None:
        sink = self._sink
        self.abort()
        if sink is not None:
            sink.upstream_lost(refused.reason)

    def _ended(self, sink: ResponseSink) -> None:
        self._sink = None
        self._channel.resume()  # Whoever paused it for the last piece has no more to do with it.
        if not self._sending:
            self._finished()
        sink.response_ended()

    def _finished(self) -> None:
        if self._keep and not self._retired and self._parser.idle:
            self._pool.give_back(self)
        else:
            self.close()
