"""HBONE connections: many byte streams inside one mutual-TLS connection.

Floor 2: carries ``ambient.wire.hbone`` over a ``TlsChannel``; the streams are in
``ambient.engine.tunnel_stream``.

Windows are the back-pressure: what a stream's receiver has not taken is not given back to the peer; a
TLS channel that is full makes every stream on it unwritable. An exception of one stream's receiver
resets that stream; a broken rule of the peer ends the connection with a GOAWAY.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, TypeAlias

from ambient.engine.channel import Data
from ambient.engine.reactor import READ_BYTES, Reactor, Timer
from ambient.engine.tls import TlsChannel
from ambient.engine.tunnel_stream import (
    Headers,
    TunnelLost,
    TunnelRefused,
    TunnelRequest,
    TunnelStream,
)
from ambient.errors import AmbientError, RemoteProtocolError
from ambient.wire import hbone_events as events
from ambient.wire.hbone import HboneConnection
from ambient.wire.hbone_budget import WindowBudget
from ambient.wire.hbone_client import HboneClient
from ambient.wire.hbone_events import DataReceived, Stream
from ambient.wire.hbone_frames import (
    FRAME_HEADER_BYTES,
    PING_BYTES,
    ErrorCode,
    pack_data_header,
)
from ambient.wire.hbone_headers import EncodedRequest
from ambient.wire.hbone_server import HboneServer
from ambient.wire.hbone_split import HboneError

__all__ = [
    "Headers",
    "TunnelConnection",
    "TunnelLost",
    "TunnelRefused",
    "TunnelRequest",
    "TunnelStatistics",
    "TunnelStream",
]

# Answers that a peer provokes and does not read (PING, SETTINGS, resets): reference/threats.md 2.
MAX_CONTROL_BACKLOG_BYTES = 64 * 1024
# A rejected request that goes on is answered all the same; picked, not measured.
REJECT_PATIENCE = 1.0
# The largest frame: with its header a whole number of TLS records.
_LARGEST_FRAME_BYTES = READ_BYTES - FRAME_HEADER_BYTES
# DATA in frames of the smallest maximum is cut so that header and payload fill one TLS record.
_RECORD_PAYLOAD_BYTES = 16 * 1024 - FRAME_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class TunnelStatistics:
    """One connection, now and since its start."""

    streams: int
    streams_total: int
    bytes_in: int
    bytes_out: int


OnOpened: TypeAlias = Callable[[TunnelStream | Exception], None]
OnRefused: TypeAlias = Callable[[Exception], None]
OnRequest: TypeAlias = Callable[[TunnelRequest], None]


class _Opening(NamedTuple):
    """A CONNECT that waits for its answer, which is late when it is *due*, *deadline* after it was sent."""

    authority: str
    on_opened: OnOpened
    due: float
    deadline: float
    on_refused: OnRefused


class TunnelConnection:
    """One HBONE connection, either role; starts speaking when constructed.

    Args:
        channel: Shaken hands, not started.
        on_request: Server role: called for each CONNECT. None: client role.
        on_closed: Called once, when the connection has ended and all its streams have been told;
            None means properly.
        on_available: Called whenever a stream ended or the peer allows more: there is room for another.
        on_rejected: Server role: a request was answered (status, reason) without asking anyone; status 0:
            its stream was reset, for a fault of the peer's or for want of room.
        windows: Bounds what stalled readers make us hold; by default the reactor's, so the process's.

    Attributes:
        dirty: It is to be flushed when the batch ends.
        frames, payload: Where DATA is framed, with room for a frame header in front and without.
        largest_frame: So much of it at a time: what the peer takes, if there is room for that.
        waiting: The streams that wait for room.
        peer_identity: From the peer's certificate; the identity of every stream.
        peer_address: (ip, port) of the TCP connection.
    """

    __slots__ = (
        "_control_bytes", "_first", "_goodbye", "_handlers", "_heard", "_late", "_limits",
        "_on_available", "_on_closed", "_on_rejected", "_on_request", "_opening", "_ping", "_pinged",
        "_pinged_at", "_streams_total", "channel", "closed", "dirty", "frames", "largest_frame",
        "local_address", "payload", "peer_address", "peer_identity", "reactor", "waiting", "wire",
    )  # fmt: skip

    def __init__(
        self,
        reactor: Reactor,
        channel: TlsChannel,
        *,
        on_request: OnRequest | None = None,
        on_closed: Callable[[Exception | None], None] | None = None,
        on_available: Callable[[], None] | None = None,
        on_rejected: Callable[[int, str], None] | None = None,
        windows: WindowBudget | None = None,
    ) -> None:
        self.reactor = reactor
        self._limits = reactor.limits
        self.channel = channel
        self._on_request = on_request
        self._on_closed = on_closed
        self._on_available = on_available
        self._on_rejected = on_rejected
        windows = windows or reactor.windows
        self.wire: HboneConnection
        if on_request is None:
            self.wire = HboneClient(windows=windows, stream_type=TunnelStream)
        else:
            self.wire = HboneServer(windows=windows, stream_type=TunnelRequest)
        self.peer_identity = channel.peer_identity
        self.peer_address = channel.peer_address
        self.local_address = channel.local_address
        self.frames, self.payload = reactor.frame_buffer, reactor.frame_payload
        self.largest_frame = self.wire.peer_max_frame
        self.closed = False
        self._opening: dict[Stream, _Opening] = {}
        # One timer for all answers that are awaited: nearly all come long before it.
        self._late: Timer | None = None
        self.waiting: dict[TunnelStream, None] = {}
        self.dirty = False
        self._control_bytes = 0
        self._streams_total = 0
        self._heard = reactor.now()
        self._pinged = False
        self._pinged_at = 0.0
        self._goodbye: Timer | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.WindowOpened: self._on_window,
            events.StreamEnded: self._on_ended,
            events.StreamReset: self._on_reset,
            events.RequestReceived: self._on_request_received,
            events.RequestRejected: self._on_request_rejected,
            events.ResponseReceived: self._on_response,
            events.SettingsReceived: self._on_settings,
            events.GoawayReceived: self._on_goaway,
            events.PingAcknowledged: self._on_pong,
        }
        self._ping = reactor.call_later(self._limits.ping_interval, self._check_alive, self.crashed)
        self._first: Timer | None = None
        if on_request is not None:
            self._first = reactor.call_later(self._limits.first_connect, self._no_request, self.crashed)
        channel.start(self)
        self.push()

    def __repr__(self) -> str:
        role = "server" if isinstance(self.wire, HboneServer) else "client"
        return f"<TunnelConnection {role} to {self.peer_identity}, {len(self.wire.streams)} streams>"

    # For its owner -----------------------------------------------------------------------------

    def open_stream(
        self,
        authority: str,
        headers: Headers | EncodedRequest,
        on_opened: OnOpened,
        *,
        deadline: float | None = None,
        on_refused: OnRefused | None = None,
        on_finished: Callable[[], None] | None = None,
    ) -> None:
        """CONNECT to *authority* (``"10.244.1.3:80"``), which *headers* hold too if they are encoded.

        *on_opened* gets the stream at 200, else ``TunnelRefused``, ``TunnelLost``, ``TimeoutError`` or,
        for headers that cannot be sent, ``LocalProtocolError``; never before this method returns.
        *on_refused* gets all but the stream, if it is given; *on_finished* is called once when a stream that
        was given to *on_opened* has ended.
        """
        try:
            stream = self.wire.open(authority, headers)
        except AmbientError as exc:
            self.reactor.call_soon(partial(on_refused or on_opened, self._unopened(exc)), _recorded)
            return
        stream.on_finished = on_finished
        self._streams_total += 1
        if deadline is None:
            deadline = self._limits.connect_answer
        due = monotonic() + deadline
        self._opening[stream] = _Opening(authority, on_opened, due, deadline, on_refused or on_opened)
        if self._late is None or due < self._late.when:
            self._await_answers(due)
        if not self.dirty:
            self.touch()

    def _unopened(self, exc: AmbientError) -> AmbientError:
        """What to say of *exc*, which the wire said of a request."""
        if not self.closed and self.wire.can_open:
            return exc
        # A GOAWAY came before we had asked; a connection that just died has said no such thing.
        return TunnelLost("it takes no more streams", retryable=True, unprocessed=not self.closed)

    @property
    def usable(self) -> bool:
        """Whether ``open_stream`` may be called: alive, no GOAWAY, room under the peer's limit."""
        return not self.closed and self.wire.can_open

    @property
    def streams(self) -> int:
        """Live streams."""
        return len(self.wire.streams)

    def goaway(self) -> None:
        """Accept no more streams; those that live go on, and the last one closes the connection."""
        if self.closed or self.wire.closing:
            return
        if self._on_request is None:
            self.wire.closing = True  # The server need not know: it opens no streams.
        else:
            self.wire.goaway()
            # Whoever lives has answered by then, or has been found dead by his silence: a starved peer has
            # CONNECTs under way that it knows no better about.
            patience = self._limits.ping_interval + self._limits.ping_timeout
            self._goodbye = self.reactor.call_later(patience, self._no_goodbye, self.crashed)
            self.touch()
        self._close_if_drained()

    def close(self) -> None:
        """End every stream and the connection now."""
        self._end(None)

    def crashed(self, exc: Exception) -> None:
        """End it because of *exc*; the reactor calls it too."""
        self._end(exc)

    def statistics(self) -> TunnelStatistics:
        """What it carries."""
        channel = self.channel
        return TunnelStatistics(self.streams, self._streams_total, channel.bytes_in, channel.bytes_out)

    # For its streams ---------------------------------------------------------------------------

    def touch(self) -> None:
        """The wire has something to say: send it when the batch ends."""
        if not self.dirty and not self.closed:
            self.dirty = True
            self.reactor.mark_dirty(self)

    def flush(self) -> None:
        """Send what the wire has to say; the reactor calls it."""
        self.dirty = False
        if not self.closed:
            self.push()

    def wait_for_room(self, stream: TunnelStream) -> None:
        """Call *stream*'s ``room_made`` when the connection's window or socket has room again."""
        self.waiting[stream] = None

    def send_data(self, stream: Stream, data: Data) -> int:
        """Frame and send as much of *data* as the windows allow; returns how much."""
        self.push()
        view = memoryview(data)
        room = min(len(view), self.wire.sendable(stream))
        if room <= 0 or not self.channel.writable:
            return 0
        limit = min(self.wire.peer_max_frame, READ_BYTES)
        if limit < READ_BYTES:
            limit = min(limit, _RECORD_PAYLOAD_BYTES)
        for start in range(0, room, limit):
            size = min(limit, room - start)
            self.frames[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + size] = view[start : start + size]
            pack_data_header(self.frames, 0, size << 8, stream.stream_id)
            self.channel.write(self.frames[: FRAME_HEADER_BYTES + size])
            self.wire.sent(stream, size)
        return room

    def stream_gone(self, stream: TunnelStream) -> None:
        """*stream* ended in both directions."""
        self.waiting.pop(stream, None)
        if self.wire.closing:
            self._close_if_drained()

    # The channel's receiver ----------------------------------------------------------------------

    def data_received(self, data: memoryview) -> None:
        """Decrypted bytes: let the wire read them and obey what it says."""
        self._heard = now = monotonic()
        wire, position, last = self.wire, 0, None
        while (stream := wire.take_message(data, position)) is not None:
            start, position = position + FRAME_HEADER_BYTES, wire.message_end
            if stream.live:
                try:
                    if start < position:
                        stream.take_message(data[start:position])
                    else:
                        stream.take_eof()
                except Exception as exc:
                    self._stream_crashed(stream, exc)
            if position == len(data):
                return
            if stream is last and start < position:
                break  # Two in a row: what follows may be gathered.
            last = stream
        if position:
            data = data[position:]
        try:
            happened = self.wire.receive_data(data, now)
        except HboneError as exc:
            for event in exc.events:
                if isinstance(event, events.StreamReset):
                    self._on_reset(event)  # Else its owner would never hear of the end.
            self.push()
            self.channel.flush()
            self._end(exc)
            return
        handlers = self._handlers
        for event in happened:
            if self.closed:
                return
            if type(event) is DataReceived:
                stream = event.stream
                if stream.live:
                    try:
                        stream.take(event.parts, event.total)
                    except Exception as exc:
                        self._stream_crashed(stream, exc)
            elif (react := handlers.get(type(event))) is not None:
                react(event)
        if not self.closed:
            if self.wire.output:
                self.push()
            if self.wire.closing:
                self._close_if_drained()

    def eof_received(self) -> None:
        """The peer closed; with streams alive that is a loss."""
        lost = TunnelLost("the peer closed the connection", retryable=True)
        self._end(lost if self.wire.streams or self._opening else None)

    def write_ready(self) -> None:
        """The socket took what was waiting."""
        self._control_bytes = 0
        self._wake()

    def channel_closed(self, exc: Exception | None) -> None:
        """The TLS channel is gone."""
        if exc is not None and not isinstance(exc, AmbientError):
            exc = TunnelLost(f"connection lost: {exc}", retryable=True)
        self._end(exc)

    # Events ------------------------------------------------------------------------------------

    def _on_ended(self, event: events.StreamEnded) -> None:
        stream: TunnelStream = event.stream
        if stream.live:
            try:
                stream.take_eof()
            except Exception as exc:
                self._stream_crashed(stream, exc)

    def _on_window(self, event: events.WindowOpened) -> None:
        if event.stream is None:
            self._wake()
        elif event.stream.live:
            self._make_room(event.stream)

    def _on_settings(self, event: events.SettingsReceived) -> None:
        self.largest_frame = min(self.wire.peer_max_frame, _LARGEST_FRAME_BYTES)
        self._wake()
        if self._on_available is not None:
            self.reactor.call_soon(self._on_available, self.crashed)

    def _on_reset(self, event: events.StreamReset) -> None:
        opening = self._opening.pop(event.stream, None)
        if opening is not None:
            unprocessed = event.unprocessed
            self._answer(opening, TunnelLost(_why(event), retryable=unprocessed, unprocessed=unprocessed))
            self._close_if_drained()
        elif event.stream.live:
            stream: TunnelStream = event.stream
            if event.code == ErrorCode.NO_ERROR and stream.stopped():
                return
            stream.lost(ConnectionResetError(_why(event)))

    def _on_request_received(self, event: events.RequestReceived) -> None:
        if self._first is not None:
            self._first.cancel()
            self._first = None
        self._streams_total += 1
        request: TunnelRequest = event.stream
        request.begin(self, event.authority, event.headers)
        assert self._on_request is not None
        try:
            self._on_request(request)
        except Exception as exc:
            self.reactor.record_failure(exc)
            request.refuse(503, "internal error")

    def _on_request_rejected(self, event: events.RequestRejected) -> None:
        if event.stream is not None and event.stream.rejection is not None:
            late = partial(self._answer_rejected, event.stream)
            self.reactor.call_later(REJECT_PATIENCE, late, self.crashed)
        if self._on_rejected is not None:
            self._on_rejected(event.status, event.reason)

    def _answer_rejected(self, stream: Stream) -> None:
        if not self.closed:
            self.wire.answer_rejected(stream)
            self.touch()

    def _on_response(self, event: events.ResponseReceived) -> None:
        opening = self._opening.pop(event.stream, None)
        if opening is None:
            return
        if event.status >= 300:
            self._answer(opening, TunnelRefused(event.status, event.headers))
            self._after_refusal()
            return
        stream: TunnelStream = event.stream
        stream.begin(self, opening.authority, event.headers)
        self._answer(opening, stream)

    def _on_goaway(self, event: events.GoawayReceived) -> None:
        if self._on_available is not None:
            self.reactor.call_soon(self._on_available, self.crashed)
        self._close_if_drained()

    def _on_pong(self, event: events.PingAcknowledged) -> None:
        self._close_if_drained()

    # Small things ------------------------------------------------------------------------------

    def _answer(self, opening: _Opening, answer: TunnelStream | Exception) -> None:
        """Tell whoever asked; its exception costs its stream only."""
        try:
            if isinstance(answer, TunnelStream):
                opening.on_opened(answer)
            else:
                opening.on_refused(answer)
        except Exception as exc:
            self.reactor.record_failure(exc)
            if isinstance(answer, TunnelStream):
                answer.crashed(exc)

    def _after_refusal(self) -> None:
        if self._on_available is not None:
            self.reactor.call_soon(self._on_available, self.crashed)
        self._close_if_drained()

    def _await_answers(self, due: float) -> None:
        if self._late is not None:
            self._late.cancel()
        self._late = self.reactor.call_later(due - self.reactor.now(), self._unanswered, self.crashed)

    def _unanswered(self) -> None:
        self._late = None
        now = self.reactor.now()
        for stream, opening in list(self._opening.items()):
            if opening.due <= now and self._opening.pop(stream, None) is not None:
                self.wire.reset(stream, ErrorCode.CANCEL)
                self.touch()
                self._answer(opening, TimeoutError(f"no answer to CONNECT within {opening.deadline:g} s"))
                self._after_refusal()
        if self._opening and not self.closed and self._late is None:
            self._await_answers(min(opening.due for opening in self._opening.values()))

    def _stream_crashed(self, stream: TunnelStream, exc: Exception) -> None:
        self.reactor.record_failure(exc)
        stream.crashed(exc)

    def _wake(self) -> None:
        waiting, self.waiting = self.waiting, {}
        for stream in waiting:
            self._make_room(stream)

    def _make_room(self, stream: TunnelStream) -> None:
        try:
            stream.room_made()
        except Exception as exc:
            self._stream_crashed(stream, exc)

    def push(self) -> None:
        """Hand what the wire has to say to the TLS channel, now."""
        out = self.wire.take_output()
        if not out:
            return
        self.channel.write(out)
        if not self.channel.writable:
            self._control_bytes += len(out)
            if self._control_bytes > MAX_CONTROL_BACKLOG_BYTES:
                self._end(RemoteProtocolError("the peer provokes answers and does not read them"))

    def _check_alive(self) -> None:
        now, limits = self.reactor.now(), self._limits
        silent = now - self._heard
        # Nothing since the PING: how long ago its answer came says nothing, this timer may be late.
        if self._pinged and self._heard < self._pinged_at:
            self._end(TunnelLost(f"no sign of life for {silent:.0f} s", retryable=True))
            return
        self._pinged = silent >= limits.ping_interval
        if self._pinged:
            self._pinged_at = now
            self.wire.ping(PING_BYTES)
            self.touch()
        wait = limits.ping_timeout if self._pinged else limits.ping_interval - silent
        self._ping = self.reactor.call_later(wait, self._check_alive, self.crashed)

    def _no_request(self) -> None:
        self._end(RemoteProtocolError(f"no CONNECT within {self._limits.first_connect:g} s"))

    def _no_goodbye(self) -> None:
        # It does not answer, so it opens nothing either; what lives may go on.
        self.wire.goodbye_over()
        self.touch()
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self.wire.drained and not self._opening and not self.closed:
            self.reactor.call_soon(self._drained, self.crashed)

    def _drained(self) -> None:
        if self.wire.drained and not self._opening:
            self.push()
            self._end(None)

    def _end(self, exc: Exception | None) -> None:
        if self.closed:
            return
        self.closed = self.wire.closing = True
        for timer in (self._ping, self._first, self._goodbye, self._late):
            if timer is not None:
                timer.cancel()
        lost = exc or TunnelLost("the connection was closed", retryable=True)
        opening, self._opening = self._opening, {}
        for each in opening.values():
            self._answer(each, _lost(lost))
        for stream in list(self.wire.streams.values()):
            if isinstance(stream, TunnelStream) and stream.live:
                stream.lost(lost)
        self.wire.release()
        self.waiting.clear()
        self._handlers.clear()
        self.channel.close()
        if self._on_closed is not None:
            self.reactor.call_soon(partial(self._on_closed, exc), _recorded)
        # Or it and its owner would keep each other alive.
        self._on_request = self._on_rejected = self._on_closed = self._on_available = None


def _lost(exc: Exception) -> Exception:
    """Nothing was answered yet, so trying again elsewhere does no harm."""
    return exc if isinstance(exc, TunnelLost) and exc.retryable else TunnelLost(str(exc), retryable=True)


def _why(event: events.StreamReset) -> str:
    return f"stream reset: {_code_name(event.code)} ({event.reason})"


def _code_name(code: int) -> str:
    return ErrorCode(code).name if code in ErrorCode._value2member_map_ else str(code)


def _recorded(exc: Exception) -> None:
    """For callbacks after the end: the reactor has recorded *exc*, nothing is left to close."""
