"""The server's half of an HTTP/1.1 exchange: a channel becomes requests, answers become bytes.

Floor 2. One connection carries one exchange at a time; requests that were pipelined wait, and while they
wait nothing more is read. Who answers is a ``RequestSink``, made anew for each request::

    on_request(connection, head) -> sink
      sink.body_received(data) *, sink.body_ended()        as the client sends
      connection.send_head(head), send_body(data) *, send_end()   as the sink answers, whatever came so far
      sink.client_writable()                               after ``connection.writable`` was False
      sink.client_gone(reason)                             instead of all that is missing; nothing follows

Back-pressure: a sink that cannot take more body calls ``pause_body``; a sink that finds ``writable`` False
stops sending until ``client_writable``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

from ambient.engine.channel import Channel
from ambient.engine.reactor import Reactor, Timer
from ambient.wire.http1 import RequestParser
from ambient.wire.http1_heads import (
    CONTINUE,
    END,
    LAST_CHUNK,
    Refused,
    RequestHead,
    ResponseHead,
    chunks_response,
    encode_chunk,
    encode_response,
)

# A head that has begun must end by then (reference/threats.md W17, slow headers).
HEAD_DEADLINE = 10.0
# Envoy's default idle timeout of a downstream connection is an hour: closing earlier would race with clients.
IDLE_DEADLINE = 3600.0
# Envoy's stream_idle_timeout: nothing moved for so long inside an exchange.
EXCHANGE_DEADLINE = 300.0
# How often the deadlines above are looked at: one timer for all connections instead of one for each request.
SWEEP_SECONDS = 2.5
# A client may go on sending a body whose answer it has; beyond this it is cut off. Picked, not measured.
MAX_UNWANTED_BODY_BYTES = 256 * 1024


class RequestSink(Protocol):
    """Whoever answers one request; see the module for the order of calls."""

    def body_received(self, data: bytes) -> None:
        """A piece of the request's body."""
        ...

    def body_ended(self) -> None:
        """The request is complete."""
        ...

    def client_writable(self) -> None:
        """There is room for more of the answer."""
        ...

    def client_gone(self, reason: str) -> None:
        """The client's connection is over before the exchange was."""
        ...


OnRequest: TypeAlias = Callable[["ServerConnection", RequestHead], RequestSink]


class HttpServer:
    """All connections that one kind of request comes in by; drains and sweeps them together.

    Args:
        on_request: Returns the sink that will answer; it may answer before it returns.
        on_refused: Told of requests that broke a rule and were answered here.
    """

    def __init__(
        self,
        reactor: Reactor,
        on_request: OnRequest,
        *,
        on_refused: Callable[[ServerConnection, Refused], None] | None = None,
    ) -> None:
        self.reactor = reactor
        self.on_request = on_request
        self.on_refused = on_refused
        self.connections: set[ServerConnection] = set()
        self.draining = False
        self.on_empty: Callable[[], None] | None = None
        self.tick = 0  # sweeps so far: the clock of the deadlines
        self._sweeper: Timer | None = None

    def serve(self, channel: Channel, context: Any = None) -> ServerConnection:
        """Read requests from *channel* until it ends; *context* is the caller's own."""
        connection = ServerConnection(self, channel, context)
        self.connections.add(connection)
        if self._sweeper is None:
            self._sweeper = self.reactor.call_later(SWEEP_SECONDS, self._sweep)
        channel.start(connection)
        return connection

    def drain(self) -> None:
        """Let each connection end with its next answer; the rest is closed by ``close_idle``."""
        self.draining = True
        self._tell_if_empty()

    def close_idle(self) -> None:
        """Close the connections that carry no exchange now."""
        for connection in [each for each in self.connections if not each.busy]:
            connection.close()

    def abort(self) -> None:
        """End every connection now."""
        for connection in list(self.connections):
            connection.abort()

    def forget(self, connection: ServerConnection) -> None:
        """A connection is over."""
        self.connections.discard(connection)
        self._tell_if_empty()

    def refused(self, connection: ServerConnection, refused: Refused) -> None:
        """A request broke a rule."""
        if self.on_refused is not None:
            self.on_refused(connection, refused)

    def _tell_if_empty(self) -> None:
        if self.draining and not self.connections and self.on_empty is not None:
            self.on_empty()

    def _sweep(self) -> None:
        self._sweeper = None
        self.tick += 1
        for connection in list(self.connections):
            connection.check_deadlines()
        if self.connections:
            self._sweeper = self.reactor.call_later(SWEEP_SECONDS, self._sweep)


class _Unwanted:
    """Takes the rest of a body whose answer was given early, up to a bound."""

    __slots__ = ("_connection", "_left")

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self._left = MAX_UNWANTED_BODY_BYTES

    def body_received(self, data: bytes) -> None:
        self._left -= len(data)
        if self._left < 0:
            self._connection.abort()

    def body_ended(self) -> None:
        pass

    def client_writable(self) -> None:
        pass

    def client_gone(self, reason: str) -> None:
        pass


class ServerConnection:
    """One client's connection.

    Attributes:
        channel: Its bytes.
        context: Whatever the server's owner attached (the peer's identity, the service addressed).
        busy: An exchange is under way.
    """

    __slots__ = (
        "_active", "_answered", "_channel_paused", "_chunks", "_close", "_events", "_head_only", "_held",
        "_minor", "_next", "_parser", "_paused", "_request_done", "_running", "_server", "_sink", "_slow",
        "busy", "channel", "context",
    )  # fmt: skip

    def __init__(self, server: HttpServer, channel: Channel, context: Any) -> None:
        self.channel = channel
        self.context = context
        self.busy = False
        self._server = server
        self._parser = RequestParser()
        self._events: list[Any] = []
        self._next = 0  # the first of ``_events`` that nobody has seen
        self._sink: RequestSink | None = None
        self._paused = self._channel_paused = self._running = False
        self._request_done = self._answered = True
        self._chunks = self._close = self._head_only = False
        self._held = b""  # the answer's head, waiting for its body to leave in one record
        self._minor = 1
        self._active = server.tick
        self._slow = 0

    # From the channel ----------------------------------------------------------------------

    def data_received(self, data: memoryview) -> None:
        """The client sent something."""
        self._active = self._server.tick
        self._take(self._parser.receive_data(data))

    def eof_received(self) -> None:
        """The client sends no more; what it asked is still answered."""
        self._close = True
        self._take(self._parser.receive_eof())
        if not self.busy and self._next >= len(self._events):
            self.channel.close()

    def write_ready(self) -> None:
        """The channel has room again."""
        if self._sink is not None:
            self._sink.client_writable()

    def channel_closed(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._server.forget(self)
        self._events, self._next = [], 0
        sink, self._sink, self.busy = self._sink, None, False
        if sink is not None:
            sink.client_gone(f"client closed: {exc}" if exc else "client closed")

    # From the sink -------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """False: send no more of the answer until ``client_writable``."""
        return self.channel.writable

    def send_head(self, head: ResponseHead, extra: bytes = b"") -> None:
        """Send the answer's head, with *extra* complete header lines of our own."""
        self._close = self._close or self._server.draining
        self._chunks = chunks_response(head, self._minor)
        if self._minor == 0 and head.content_length < 0 and not head.bodiless:
            self._close = True
        self._held = encode_response(head, self._minor, self._close, extra)
        self._server.reactor.mark_dirty(self)

    def send_body(self, data: bytes) -> None:
        """Send a piece of the answer's body."""
        self._active = self._server.tick
        if self._chunks:
            data = encode_chunk(data)
        if self._held:
            data = self._held + data
            self._held = b""
        self.channel.write(data)

    def send_end(self) -> None:
        """The answer is complete."""
        last = self._held + LAST_CHUNK if self._chunks else self._held
        if last:
            self._held = b""
            self.channel.write(last)
        self._answered = True
        if self._request_done:
            self._exchange_over()
        else:
            self._sink = _Unwanted(self)
            self.resume_body()

    def answer(self, status: int, text: str = "", extra: bytes = b"") -> None:
        """Send a whole short answer of our own."""
        body = text.encode()
        extra = b"content-type: text/plain\r\n" + extra if body else extra
        self.send_head(ResponseHead(status, content_length=len(body)), extra)
        if body and not self._head_only:
            self.send_body(body)
        self.send_end()

    def pause_body(self) -> None:
        """Deliver no more of the request until ``resume_body``."""
        self._paused = True
        self._throttle()

    def resume_body(self) -> None:
        """Undo ``pause_body``; what is at hand is delivered at once."""
        self._paused = False
        self._advance()

    def flush(self) -> None:
        """Send a head whose body is not here yet; the reactor calls it at the end of a batch."""
        if self._held:
            held, self._held = self._held, b""
            self.channel.write(held)

    def close(self) -> None:
        """Close after what was written."""
        self.channel.close()

    def abort(self) -> None:
        """End it now: an answer that cannot be completed must not look complete."""
        self.channel.abort()

    def crashed(self, exc: Exception) -> None:
        """Told by the reactor of an exception that left ``flush``, which it has recorded."""
        self.abort()

    # Inside --------------------------------------------------------------------------------

    def _take(self, events: list[Any]) -> None:
        if self._next < len(self._events):
            self._events += events
        else:
            self._events, self._next = events, 0
        self._advance()

    def _advance(self) -> None:
        """Deliver events until one has to wait: a request for its predecessor, a body for its sink."""
        if self._running:
            return
        self._running = True
        while self._next < len(self._events) and not self._paused:
            event = self._events[self._next]
            if self.busy and not self._request_done:
                self._next += 1
                self._deliver(event)
            elif self.busy:
                break
            else:
                self._next += 1
                self._begin(event)
        self._running = False
        self._throttle()

    def _deliver(self, event: Any) -> None:
        sink = self._sink
        if sink is None:
            return
        if event is END:
            self._request_done = True
            sink.body_ended()
            if self._answered and self.busy:
                self._exchange_over()
        elif type(event) is bytes:
            sink.body_received(event)
        else:
            self._broken_body(event)

    def _begin(self, event: Any) -> None:
        self._slow = 0
        if type(event) is not RequestHead:
            self._refuse(event)
            return
        self.busy = True
        self._request_done = self._answered = False
        self._minor = event.minor
        self._head_only = event.method == b"HEAD"
        self._close = self._close or not event.keep_alive
        if event.expects_continue:
            self.channel.write(CONTINUE)
        sink = self._server.on_request(self, event)
        if not self._answered:
            self._sink = sink

    def _exchange_over(self) -> None:
        self.busy = False
        self._sink = None
        if self._close:
            self._events, self._next = [], 0
            self.channel.close()
        else:
            self._advance()

    def _refuse(self, refused: Refused) -> None:
        """Answer what broke a rule, and end: nobody knows where its next request would begin."""
        self._close = True
        self._minor = 1
        self._head_only = False
        self._request_done, self.busy = True, True
        self.answer(refused.status, refused.reason + "\n")
        self._server.refused(self, refused)

    def _broken_body(self, refused: Refused) -> None:
        """The body broke a rule in the middle of an exchange."""
        sink, self._sink = self._sink, None
        self.busy = False
        assert sink is not None
        sink.client_gone(refused.reason)
        self._server.refused(self, refused)
        self.abort()

    def _throttle(self) -> None:
        wanted = self._paused or self._next < len(self._events)
        if wanted != self._channel_paused:
            self._channel_paused = wanted
            if wanted:
                self.channel.pause()
            else:
                self.channel.resume()

    def check_deadlines(self) -> None:
        """End a connection on which nothing happens for too long."""
        quiet = (self._server.tick - self._active) * SWEEP_SECONDS
        if self.busy:
            if quiet > EXCHANGE_DEADLINE:
                self.abort()
            return
        self._slow = self._slow + 1 if self._parser.begun else 0
        if quiet > IDLE_DEADLINE:
            self.close()
        elif self._slow * SWEEP_SECONDS > HEAD_DEADLINE:
            self._refuse(Refused(408, "no complete request in time"))
