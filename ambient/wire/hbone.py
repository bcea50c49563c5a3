"""HBONE: HTTP/2 that carries CONNECT and nothing else, either role.

Floor 1: sans-IO; time is an argument. Bytes that came in go to ``receive_data``, which says what
they mean; bytes to be sent gather until ``take_output``. DATA is the exception: its payload never
enters here. The engine asks ``sendable``, frames in place (``hbone_frames.pack_data_header``) and
tells ``sent``; whatever ``take_output`` holds goes out before that frame.

Source: RFC 9113 (h2 is the oracle in the tests), Istio's ztunnel for the figures.

Theory of operation
===================

    client                                     server
      | preface, SETTINGS, window              |
      |<-------------------------------------->|
      | HEADERS  CONNECT :authority            |   RequestReceived
      |--------------------------------------->|
      |                       HEADERS  200     |   accept
      |<---------------------------------------|
      | DATA both ways, END_STREAM one-sided   |
      |<-------------------------------------->|

A stream's window starts at 64 KiB and doubles while the application consumes all that comes, up to
4 MiB, as long as the process-wide budget lasts: a stalled stream stays small. The
connection's window is returned on receipt, so that a stalled stream never starves its neighbours;
what bounds memory is the sum of the streams' windows.
"""

from __future__ import annotations

from collections import deque
from enum import Enum, auto

from ambient.errors import LocalProtocolError
from ambient.wire import hbone_budget as budget
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from ambient.wire.hbone_budget import WindowBudget
from ambient.wire.hbone_events import (
    AnyStream,
    Event,
    GoawayReceived,
    PingAcknowledged,
    Rejection,
    RequestReceived,
    RequestRejected,
    ResponseReceived,
    SettingsReceived,
    Stream,
    StreamReset,
    WindowOpened,
)
from ambient.wire.hbone_frames import ErrorCode
from ambient.wire.hbone_split import MAX_FRAME_BYTES, MAX_GATHERED_BYTES, FrameSplitter, HboneError

# First and greatest width of a stream's window, and the connection's (Istio's are fixed at the last two).
FIRST_WINDOW_BYTES = 64 * 1024
LARGEST_WINDOW_BYTES = 4 * 1024 * 1024
CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
# A stream has to carry so many windows before the next is twice as wide: what the kernel takes for an
# application that never reads (some 400 KiB, measured) must not pass for draining.
GROW_AFTER_WINDOWS = 8
# The connection's window is given back once a quarter of it is used.
CONNECTION_UPDATE_BELOW = CONNECTION_WINDOW_BYTES * 3 // 4
# Istio's server advertises the same.
MAX_SERVER_STREAMS = 200
# Streams we reset: the peer may not know yet, so what it still sends on them is dropped in silence.
REMEMBERED_RESETS = 256
# Debug text of a GOAWAY that we keep.
MAX_DEBUG_BYTES = 256
GOODBYE_PING = b"goodbye?"
# Whole, and neither padded nor with a priority.
_ODD_HEADERS = f.END_HEADERS | f.PADDED | f.HAS_PRIORITY


class Role(Enum):
    """Which side of the CONNECT we are."""

    CLIENT = auto()
    SERVER = auto()


class HboneConnection(FrameSplitter):
    """One connection. After a ``RemoteProtocolError`` only ``take_output`` may be called (it holds our
    GOAWAY).

    Args:
        stream_type: What its streams are made of.

    Attributes:
        streams: Live streams by id.
        peer_max_frame: The largest DATA we may send.
        peer_max_streams: How many streams we may have open.
        send_window: What the peer lets us send over all streams.
        closing: A GOAWAY was sent or received: no new streams.
        output: What ``take_output`` will give; only to be looked at.
    """

    def __init__(
        self,
        role: Role,
        *,
        windows: WindowBudget | None = None,
        max_streams: int = MAX_SERVER_STREAMS,
        stream_type: type[Stream] = Stream,
    ) -> None:
        super().__init__(preface=role is Role.SERVER)
        self.role = role
        self._serving = role is Role.SERVER  # An enumeration's members are slow to name.
        self._stream_type = stream_type
        self.streams: dict[int, Stream] = {}
        self.send_window = f.DEFAULT_WINDOW
        self.peer_first_window = f.DEFAULT_WINDOW
        self.peer_max_frame = f.DEFAULT_MAX_FRAME
        self.peer_max_streams = budget.PREMATURE_RESETS if role is Role.CLIENT else 0
        self.closing = False
        self.data_frames_sent = 0
        self.data_bytes_sent = 0
        self._goodbye_due = False
        self._leftovers = 0
        self._windows = windows or WindowBudget()
        self._max_streams = max_streams
        self.output = bytearray()
        self._receive_window = CONNECTION_WINDOW_BYTES
        self._next_id = 1
        self._last_peer_id = 0
        self._refuse_above = f.MAX_STREAM_ID  # Streams above it came after our final GOAWAY.
        self._resets: deque[int] = deque(maxlen=REMEMBERED_RESETS)
        self._decoder = h.HeaderDecoder()
        self._requests = h.RequestReader()
        # The last answer that meant the same whatever came before it: the next is nearly always the same.
        self._answer_block = b""
        self._last_answer: tuple[int, h.Headers] = 0, ()
        self._block = bytearray()
        self._block_stream = 0  # Whose header block is unfinished; 0: none.
        self._block_flags = 0
        self._continuations = 0
        self._settled = False  # The peer's first SETTINGS came.
        self._now = 0.0
        self._empty_data = 0
        self._priorities = 0
        self._updates = 0
        self._streams_seen = 0
        self._pings = budget.Rate(budget.PINGS_PER_SECOND)
        self._settings_rate = budget.Rate(budget.SETTINGS_PER_SECOND)
        self._ignored = budget.Rate(budget.IGNORED_PER_SECOND)
        self._premature = budget.ResetBudget.fresh()
        self._greet()

    # Both roles ------------------------------------------------------------------------------

    def receive_data(self, data: memoryview, now: float) -> list[Event]:
        """Take what came and say what it means.

        Args:
            data: Any number of bytes; ``DataReceived.parts`` point into it.
            now: Monotonic seconds, for the budgets.

        Raises:
            HboneError: the peer broke the protocol or overdrew a budget; send ``take_output()`` (a GOAWAY)
                and close. Streams that were reset before, in the same bytes, are in its ``events``.
        """
        if self._broken:
            raise LocalProtocolError("the connection is broken")
        self._now = now
        events: list[Event] = []
        self._events = events
        self._batch = None
        try:
            self._parse(data)
        except HboneError as exc:
            self._broken = self.closing = True
            self.output += f.goaway(self._last_peer_id, exc.code, str(exc).encode()[:MAX_DEBUG_BYTES])
            exc.events = events
            raise
        return events

    @property
    def settled(self) -> bool:
        """Whether the peer's first SETTINGS came."""
        return self._settled

    @property
    def has_output(self) -> bool:
        """Whether ``take_output`` would give something."""
        return bool(self.output)

    def take_output(self) -> bytes:
        """What has to be sent now, in order; empty if nothing."""
        if not self.output:
            return b""
        out = bytes(self.output)
        self.output.clear()
        return out

    def sendable(self, stream: Stream) -> int:
        """How many bytes of DATA may be sent on *stream* now; not positive: wait for ``WindowOpened``."""
        return stream.send_window if stream.send_window < self.send_window else self.send_window

    def sent(self, stream: Stream, amount: int, frames: int = 1) -> None:
        """The engine framed and sent *amount* bytes of DATA, at most ``sendable``, in *frames* frames."""
        stream.send_window -= amount
        self.send_window -= amount
        self.data_frames_sent += frames
        self.data_bytes_sent += amount

    def end(self, stream: Stream) -> None:
        """Send END_STREAM; the peer's direction goes on."""
        if stream.local_closed:
            return
        stream.local_closed = True
        self.output += f.FRAME_HEADER.pack(0, 0, f.DATA, f.END_STREAM, stream.stream_id)
        if stream.remote_closed:
            self._forget(stream)

    def reset(self, stream: Stream, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """End *stream* in both directions; without effect if it has ended already."""
        if self.streams.get(stream.stream_id) is stream:
            self._reset(stream.stream_id, code)
            self._forget(stream)

    def credit(self, stream: Stream, amount: int) -> None:
        """The application consumed *amount* bytes of *stream*: let the peer send as much again."""
        stream.unreturned += amount
        if stream.unreturned * 2 >= stream.window and not stream.remote_closed:
            self._return_window(stream)

    def _return_window(self, stream: Stream) -> None:
        grow = min(stream.window, LARGEST_WINDOW_BYTES - stream.window)
        stream.drained += stream.unreturned
        # Everything that came is consumed: the window, not the application, is what holds the peer back.
        drained = stream.receive_window + stream.unreturned == stream.window
        proven = stream.drained >= GROW_AFTER_WINDOWS * stream.window
        if not (drained and grow and proven and self._windows.take(grow)):
            grow = 0
        else:
            stream.drained = 0
        stream.window += grow
        increment = stream.unreturned + grow
        stream.receive_window += increment
        stream.unreturned = 0
        self.output += f.window_update(stream.stream_id, increment)

    def ping(self, payload: bytes) -> None:
        """Ask the peer for a sign of life; eight bytes come back in ``PingAcknowledged``."""
        self.output += f.frame(f.PING, 0, 0, payload)

    def goaway(self) -> None:
        """Say that no more streams are taken; those under way when the peer reads it still are.

        RFC 9113 6.8's graceful way: first a GOAWAY that excludes nothing, and the true one when a
        PING shows that the peer has read it.
        """
        if not self.closing:
            self.closing = True
            self._goodbye_due = True
            self.output += f.goaway(f.MAX_STREAM_ID, ErrorCode.NO_ERROR)
            self.ping(GOODBYE_PING)

    def goodbye_over(self) -> None:
        """The peer has read our GOAWAY, or never will: from now on new streams are ignored."""
        if self._goodbye_due:
            self._goodbye_due = False
            self._refuse_above = self._last_peer_id
            self.output += f.goaway(self._last_peer_id, ErrorCode.NO_ERROR)

    @property
    def drained(self) -> bool:
        """Nothing lives on the connection and nothing can come: it may be closed."""
        return self.closing and not self.streams and not self._goodbye_due

    def release(self) -> None:
        """The connection is gone: return every grown window to the budget."""
        for stream in list(self.streams.values()):
            self._forget(stream)

    # Client ----------------------------------------------------------------------------------

    @property
    def can_open(self) -> bool:
        """Whether ``open`` is allowed now."""
        return (
            not self.closing
            and len(self.streams) < self.peer_max_streams
            and self._next_id <= f.MAX_STREAM_ID
        )

    def open(self, authority: str, headers: h.Headers | h.EncodedRequest = ()) -> AnyStream:
        """Send a CONNECT; headers that are encoded already hold the authority too.

        Raises:
            LocalProtocolError: not a client, no room (``can_open``), or headers that cannot be sent.
        """
        number = self._next_id
        if (
            self._serving
            or self.closing  # ``can_open``, without a call for each stream.
            or len(self.streams) >= self.peer_max_streams
            or number > f.MAX_STREAM_ID
        ):
            raise LocalProtocolError("no stream can be opened")
        block = headers if isinstance(headers, bytes) else h.encode_request(authority, headers)
        stream = self._new_stream(number)
        self._next_id = number + 2
        self.streams[number] = stream
        size = len(block)
        self.output += f.FRAME_HEADER.pack(size >> 8, size & 0xFF, f.HEADERS, f.END_HEADERS, number)
        self.output += block
        return stream

    # Server ----------------------------------------------------------------------------------

    def accept(self, stream: Stream, headers: h.Headers = ()) -> None:
        """Answer 200; DATA may follow."""
        self._require_unanswered(stream)
        stream.answered = True
        block = h.encode_response(200, headers)
        size = len(block)
        self.output += f.FRAME_HEADER.pack(size >> 8, size & 0xFF, f.HEADERS, f.END_HEADERS, stream.stream_id)
        self.output += block

    def refuse(self, stream: Stream, status: int, text: str = "") -> None:
        """Answer *status* with *text* as its whole body, and end the stream."""
        self._require_unanswered(stream)
        stream.answered = True
        self._answer(stream, status, text)

    def answer_rejected(self, stream: Stream) -> None:
        """Answer a rejected request although it goes on; without effect if it was answered or is gone."""
        rejection, stream.rejection = stream.rejection, None
        if rejection is not None and self.streams.get(stream.stream_id) is stream:
            stream.answered = True
            self._answer(stream, rejection.status, rejection.reason)

    # Frames: judged by their header ----------------------------------------------------------

    def _starts(self, kind: int, flags: int, stream_id: int, size: int) -> bool:
        if size > MAX_FRAME_BYTES:
            raise HboneError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {size} bytes")
        if self._block_stream and (kind != f.CONTINUATION or stream_id != self._block_stream):
            raise HboneError(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")
        if not self._settled and kind != f.SETTINGS:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if kind == f.DATA:
            ending = self.streams.get(stream_id) if flags == f.END_STREAM and not size else None
            if ending is not None and ending.answered and not ending.remote_closed:
                self._empty_data = 0  # The usual end of a stream: there is nothing else to judge.
                self._remote_end(ending)
            else:
                self._start_data(flags, stream_id, size)
            return True
        if kind > f.CONTINUATION:
            if not self._ignored.spend(self._now):
                raise HboneError(ErrorCode.ENHANCE_YOUR_CALM, "flood of unknown frames")
            self._left, self._current, self._ending = size, None, None
            return True
        if size > MAX_GATHERED_BYTES:
            raise HboneError(ErrorCode.FRAME_SIZE_ERROR, f"frame of {size} bytes that is not DATA")
        return False

    def _usual_data(self, stream_id: int, size: int) -> Stream | None:
        # Nearly every frame: all that ``_starts`` and ``_start_data`` ask, for the case that it is in order.
        stream = self.streams.get(stream_id)
        window = self._receive_window - size
        if (
            stream is None
            or stream.remote_closed
            or not stream.answered
            or not 0 < size <= stream.receive_window
            or window <= CONNECTION_UPDATE_BELOW
            or size > MAX_FRAME_BYTES
            or self._block_stream
        ):
            return None
        self._receive_window = window
        stream.receive_window -= size
        self._empty_data = 0
        return stream

    def _usual_end(self, stream_id: int) -> Stream | None:
        stream = self.streams.get(stream_id)
        if (
            stream is None
            or stream.remote_closed
            or not stream.answered
            or stream.rejection is not None
            or self._block_stream
        ):
            return None
        self._empty_data = 0
        self._batch = None
        stream.remote_closed = True
        if stream.local_closed:
            self._forget(stream)
        return stream

    def _usual_headers(self, stream_id: int, block: bytes) -> bool:
        # A request that begins as an earlier one did, or the answer that the last one was. SETTINGS came
        # before that, and the block changes nothing for others: all that ``_starts`` and ``_on_headers`` ask.
        if self._block_stream:
            return False
        if self._serving:
            request = self._requests.read(block) if stream_id > self._last_peer_id else None
            if request is None:
                return False
            self._batch = None
            if (opened := self._admit(stream_id, False)) is not None:
                self._connect(opened, request)
            return True
        stream = self.streams.get(stream_id)
        status, fields = self._last_answer
        if (
            block != self._answer_block
            or stream is None
            or stream.answered
            or stream.remote_closed
            or not 200 <= status < 300
        ):
            return False
        self._batch = None
        stream.answered = True
        self._events.append(ResponseReceived(stream, status, fields))
        return True

    def _start_data(self, flags: int, stream_id: int, size: int) -> None:
        if not stream_id:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, "DATA on stream 0")
        self._receive_window -= size
        if self._receive_window < 0:
            raise HboneError(ErrorCode.FLOW_CONTROL_ERROR, "DATA over the connection's window")
        if self._receive_window <= CONNECTION_UPDATE_BELOW:
            self.output += f.window_update(0, CONNECTION_WINDOW_BYTES - self._receive_window)
            self._receive_window = CONNECTION_WINDOW_BYTES
        self._count_empty(flags, size)
        stream = self.streams.get(stream_id)
        self._current = stream if stream is not None and self._data_allowed(stream, size) else None
        if stream is None:
            self._data_on_closed(stream_id)
        self._left = size
        self._ending = self._current if flags & f.END_STREAM else None
        if stream is not None and stream.rejection is not None and self._current is stream:
            self._take_unwanted(stream, stream.rejection, flags, size)
        if flags & f.PADDED:
            if not size:
                raise HboneError(ErrorCode.FRAME_SIZE_ERROR, "padded DATA without a pad length")
            self._pad_unknown = True
        if self._current is not None:
            self._current.receive_window -= size
        if not size:
            self._payload_done()

    def _data_allowed(self, stream: Stream, size: int) -> bool:
        if stream.remote_closed:
            self._stream_error(stream, ErrorCode.STREAM_CLOSED, "DATA after END_STREAM")
        elif self.role is Role.CLIENT and not stream.answered:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, "DATA before the answer")
        elif stream.receive_window < size and stream.rejection is not None:
            self.answer_rejected(stream)  # RFC 9113 6.9.1 lets us choose; the answer says more than a reset.
        elif stream.receive_window < size:
            self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR, "DATA over the stream's window")
        else:
            return True
        return False

    def _take_unwanted(self, stream: Stream, rejection: Rejection, flags: int, size: int) -> None:
        """The body of a rejected request: counted, dropped, and its window not given back."""
        stream.receive_window -= size
        self._current = None
        rejection.received += size
        if flags & f.PADDED:
            rejection.length = None  # What of it is body is not worth counting.
        elif rejection.is_wrong(ended=bool(flags & f.END_STREAM)):
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, "DATA is not of content-length")

    def _remote_end(self, stream: Stream) -> None:
        if stream.rejection is None:
            super()._remote_end(stream)
        else:
            stream.remote_closed = True
            self.answer_rejected(stream)

    def _data_on_closed(self, stream_id: int) -> None:
        if self._is_idle(stream_id):
            raise HboneError(ErrorCode.PROTOCOL_ERROR, f"DATA on idle stream {stream_id}")
        if stream_id not in self._resets:
            self._spend_reset()
            self._reset(stream_id, ErrorCode.STREAM_CLOSED)

    def _count_empty(self, flags: int, size: int) -> None:
        if size or flags & f.END_STREAM:
            self._empty_data = 0
            return
        self._empty_data += 1
        if self._empty_data > budget.CONSECUTIVE_EMPTY_DATA:
            raise HboneError(ErrorCode.ENHANCE_YOUR_CALM, "flood of empty DATA")

    # Frames: gathered ------------------------------------------------------------------------

    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        match kind:
            case f.WINDOW_UPDATE:
                self._on_window_update(stream_id, payload)
            case f.HEADERS:
                self._on_headers(flags, stream_id, payload)
            case f.CONTINUATION:
                self._on_continuation(flags, payload)
            case f.RST_STREAM:
                self._on_rst_stream(stream_id, payload)
            case f.PING:
                self._on_ping(flags, stream_id, payload)
            case f.SETTINGS:
                self._on_settings(flags, stream_id, payload)
            case f.GOAWAY:
                self._on_goaway(stream_id, payload)
            case f.PRIORITY:
                self._on_priority(stream_id, payload)
            case _:
                raise HboneError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE")

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        self._require_size(payload, 4)
        increment = f.UINT32.unpack(payload)[0] & f.MAX_WINDOW
        self._count_update()
        if not stream_id:
            if not increment:
                raise HboneError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self.send_window += increment
            if self.send_window > f.MAX_WINDOW:
                raise HboneError(ErrorCode.FLOW_CONTROL_ERROR, "connection window over 2^31-1")
            self._events.append(WindowOpened(None))
            self._send_tails()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            self._require_not_idle(stream_id, "WINDOW_UPDATE")
        elif not increment:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
        elif stream.send_window + increment > f.MAX_WINDOW:
            self._stream_error(stream, ErrorCode.FLOW_CONTROL_ERROR, "stream window over 2^31-1")
        else:
            stream.send_window += increment
            self._events.append(WindowOpened(stream))
            self._send_tail(stream)

    def _count_update(self) -> None:
        self._updates += 1
        allowed = (
            budget.UPDATES_BASE
            + budget.UPDATES_PER_STREAM * self._streams_total()
            + budget.UPDATES_PER_DATA_SENT * self.data_frames_sent
            + self.data_bytes_sent // budget.BYTES_SENT_PER_UPDATE
        )
        if self._updates > allowed:
            raise HboneError(ErrorCode.ENHANCE_YOUR_CALM, "flood of WINDOW_UPDATE")

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, "HEADERS on stream 0")
        if flags & _ODD_HEADERS == f.END_HEADERS and not self._block_stream:
            self._block_done(stream_id, flags, payload)  # Whole and plain, as nearly all are.
            return
        block, dependency = _header_block(flags, payload)
        self._block += block
        self._block_stream = stream_id
        self._block_flags = flags
        self._continuations = 0
        if dependency == stream_id:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")
        if flags & f.END_HEADERS:
            self._gathered_done()

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if not self._block_stream:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._block += payload
        self._continuations += 1
        if self._continuations > h.MAX_CONTINUATIONS or len(self._block) > h.MAX_BLOCK_BYTES:
            raise HboneError(ErrorCode.ENHANCE_YOUR_CALM, "flood of CONTINUATION")
        if flags & f.END_HEADERS:
            self._gathered_done()

    def _gathered_done(self) -> None:
        block, stream_id = bytes(self._block), self._block_stream
        self._block.clear()
        self._block_stream = 0
        self._block_done(stream_id, self._block_flags, block)

    def _block_done(self, stream_id: int, flags: int, block: bytes) -> None:
        self._batch = None
        ended = bool(flags & f.END_STREAM)
        if self.role is Role.CLIENT:
            self._on_response(stream_id, block, ended)
            return
        request = self._requests.read(block) if stream_id > self._last_peer_id else None
        if request is None:
            self._on_request(stream_id, self._decode(block), block, ended)
        elif (stream := self._admit(stream_id, ended)) is not None:
            self._connect(stream, request)

    def _decode(self, block: bytes) -> h.RawHeaders:
        try:
            return self._decoder.decode(block)
        except h.CompressionBrokenError as exc:
            code = ErrorCode.ENHANCE_YOUR_CALM if exc.oversized else ErrorCode.COMPRESSION_ERROR
            raise HboneError(code, str(exc)) from exc

    def _on_rst_stream(self, stream_id: int, payload: bytes) -> None:
        self._require_size(payload, 4)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._require_not_idle(stream_id, "RST_STREAM")
            self._spend_ignored()
            return
        code = f.UINT32.unpack(payload)[0]
        if self.role is Role.SERVER and not stream.answered:
            self._spend_reset()
        self._batch = None
        self._forget(stream)
        unprocessed = code == ErrorCode.REFUSED_STREAM
        self._events.append(StreamReset(stream, code, unprocessed, "reset by the peer"))

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._require_connection(stream_id, "PING")
        self._require_size(payload, 8)
        if not flags & f.ACK:
            if not self._pings.spend(self._now):
                raise HboneError(ErrorCode.ENHANCE_YOUR_CALM, "flood of PING")
            self.output += f.frame(f.PING, f.ACK, 0, payload)
        elif payload == GOODBYE_PING and self._goodbye_due:
            self.goodbye_over()
            self._events.append(PingAcknowledged(payload))
        else:
            self._spend_ignored()
            self._events.append(PingAcknowledged(payload))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._require_connection(stream_id, "SETTINGS")
        if flags & f.ACK:
            self._require_size(payload, 0)
            if not self._settled:
                raise HboneError(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            self._spend_ignored()
            return
        if len(payload) % f.SETTING.size:
            raise HboneError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a broken length")
        if not self._settings_rate.spend(self._now):
            raise HboneError(ErrorCode.ENHANCE_YOUR_CALM, "flood of SETTINGS")
        if not self._settled and self.role is Role.CLIENT:
            self.peer_max_streams = f.MAX_STREAM_ID
        self._settled = True
        for identifier, value in f.SETTING.iter_unpack(payload):
            self._set(identifier, value)
        self.output += f.frame(f.SETTINGS, f.ACK, 0)
        self._events.append(SettingsReceived())
        self._send_tails()

    def _set(self, identifier: int, value: int) -> None:
        match identifier:
            case f.ENABLE_PUSH if value > (0 if self.role is Role.CLIENT else 1):
                raise HboneError(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH of {value}")
            case f.MAX_CONCURRENT_STREAMS:
                self.peer_max_streams = value
            case f.INITIAL_WINDOW_SIZE:
                self._set_first_window(value)
            case f.MAX_FRAME_SIZE:
                if not f.DEFAULT_MAX_FRAME <= value <= f.LARGEST_MAX_FRAME:
                    raise HboneError(ErrorCode.PROTOCOL_ERROR, f"MAX_FRAME_SIZE of {value}")
                self.peer_max_frame = value
            case _:
                pass  # Our encoder keeps no table and sends small lists; unknown ones are to be ignored.

    def _set_first_window(self, value: int) -> None:
        if value > f.MAX_WINDOW:
            raise HboneError(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE of {value}")
        change = value - self.peer_first_window
        self.peer_first_window = value
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > f.MAX_WINDOW:
                raise HboneError(ErrorCode.FLOW_CONTROL_ERROR, "stream window over 2^31-1")

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        self._require_connection(stream_id, "GOAWAY")
        if len(payload) < 8:
            raise HboneError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a broken length")
        self._spend_ignored()
        last = f.UINT32.unpack_from(payload)[0] & f.MAX_STREAM_ID
        code = f.UINT32.unpack_from(payload, 4)[0]
        self.closing = True
        self._batch = None
        if self.role is Role.CLIENT:
            for stream in [stream for number, stream in self.streams.items() if number > last]:
                self._forget(stream)
                self._events.append(StreamReset(stream, ErrorCode.REFUSED_STREAM, True, "GOAWAY"))
        self._events.append(GoawayReceived(last, code, payload[8 : 8 + MAX_DEBUG_BYTES]))

    def _on_priority(self, stream_id: int, payload: bytes) -> None:
        if not stream_id:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, "PRIORITY on stream 0")
        self._require_size(payload, 5)
        self._priorities += 1
        allowed = budget.PRIORITY_BASE + budget.PRIORITY_PER_STREAM * self._streams_total()
        if self._priorities > allowed:
            raise HboneError(ErrorCode.ENHANCE_YOUR_CALM, "flood of PRIORITY")
        if f.UINT32.unpack_from(payload)[0] & f.MAX_STREAM_ID == stream_id:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, "a stream depends on itself")

    # Requests and answers --------------------------------------------------------------------

    def _on_request(self, stream_id: int, headers: h.RawHeaders, block: bytes, ended: bool) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._on_trailers(stream, headers, ended)
            return
        if not self._is_idle(stream_id):
            if stream_id not in self._resets:
                raise HboneError(ErrorCode.STREAM_CLOSED, f"HEADERS on closed stream {stream_id}")
            self._spend_ignored()
            return
        opened = self._admit(stream_id, ended)
        if opened is not None:
            self._judge_request(opened, headers, block)

    def _admit(self, stream_id: int, ended: bool) -> Stream | None:
        """The stream that a new request opens; None if it opens none."""
        if not stream_id % 2:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, f"a client opened stream {stream_id}")
        if stream_id > self._refuse_above:
            return None  # Our GOAWAY said so; RFC 9113 6.8 has us ignore it.
        self._last_peer_id = stream_id
        self._streams_seen += 1
        self._premature.streams += 1
        if len(self.streams) >= self._max_streams:
            self._spend_reset()
            self._reset(stream_id, ErrorCode.REFUSED_STREAM)
            self._events.append(RequestRejected(None, 0, f"over {self._max_streams} streams at a time"))
            return None
        stream = self._new_stream(stream_id)
        stream.remote_closed = ended
        self.streams[stream_id] = stream
        return stream

    def _judge_request(self, stream: Stream, headers: h.RawHeaders, block: bytes) -> None:
        if h.list_bytes(headers) > h.MAX_HEADER_LIST_BYTES:
            self._reject(stream, 431, "header block too large")
            return
        try:
            request = h.read_request(headers)
        except h.MalformedError as exc:
            self._malformed(stream, str(exc))
            return
        if request.method != "CONNECT":
            self._reject_when_whole(stream, headers)
        elif request.protocol:
            self._reject(stream, 501, "extended CONNECT is not served here")
        else:
            self._requests.learn(block, request)
            self._connect(stream, request)

    def _connect(self, stream: Stream, request: h.Request) -> None:
        ended = stream.remote_closed
        stream.remote_closed = False
        self._events.append(RequestReceived(stream, request.authority, request.headers))
        if ended:
            self._remote_end(stream)

    def _on_trailers(self, stream: Stream, headers: h.RawHeaders, ended: bool) -> None:
        if stream.rejection is not None and ended and not any(name[:1] == b":" for name, _ in headers):
            self._remote_end(stream)
            return
        late = ErrorCode.STREAM_CLOSED if stream.remote_closed else ErrorCode.PROTOCOL_ERROR
        self._stream_error(stream, late, "HEADERS on an open stream")

    def _reject(self, stream: Stream, status: int, reason: str) -> None:
        stream.answered = True
        self._events.append(RequestRejected(stream, status, reason))
        self._answer(stream, status, reason)

    def _malformed(self, stream: Stream, reason: str) -> None:
        """A request that RFC 9113 8.1.1 has us reset; nobody has heard of it yet."""
        self._spend_reset()
        self._reset(stream.stream_id, ErrorCode.PROTOCOL_ERROR)
        self._forget(stream)
        self._events.append(RequestRejected(None, 0, f"malformed request: {reason}"))

    def _reject_when_whole(self, stream: Stream, headers: h.RawHeaders) -> None:
        """Other methods may have a body, and a fault in it is to be answered as such (RFC 9113 8.1.1).

        The engine answers earlier if the rest does not come soon (``answer_rejected``).
        """
        declared = [value for name, value in headers if name == b"content-length"]
        ended = stream.remote_closed
        stream.rejection = Rejection(405, "only CONNECT is served here", h.content_length(declared))
        if stream.rejection.length == -1 or (ended and stream.rejection.is_wrong(ended=True)):
            self._malformed(stream, "content-length is wrong")
            return
        self._events.append(RequestRejected(stream, 405, stream.rejection.reason))
        if ended:
            self.answer_rejected(stream)

    def _answer(self, stream: Stream, status: int, text: str) -> None:
        body = f"{text}\n".encode() if text else b""
        headers = (("content-type", "text/plain"), ("content-length", str(len(body)))) if body else ()
        flags = f.END_HEADERS if body else f.END_HEADERS | f.END_STREAM
        self.output += f.frame(f.HEADERS, flags, stream.stream_id, h.encode_response(status, headers))
        stream.tail = body
        if body:
            self._send_tail(stream)
        else:
            self._answered_for_good(stream)

    def _send_tails(self) -> None:
        for stream in [stream for stream in self.streams.values() if stream.tail]:
            self._send_tail(stream)

    def _send_tail(self, stream: Stream) -> None:
        room = self.sendable(stream)
        if not stream.tail or room <= 0:
            return
        piece, stream.tail = stream.tail[:room], stream.tail[room:]
        self.sent(stream, len(piece))
        self.output += f.frame(f.DATA, 0 if stream.tail else f.END_STREAM, stream.stream_id, piece)
        if not stream.tail:
            self._answered_for_good(stream)

    def _answered_for_good(self, stream: Stream) -> None:
        stream.local_closed = True
        if not stream.remote_closed:
            # RFC 9113 8.1: the answer is complete, the rest of the request is not wanted.
            self._reset(stream.stream_id, ErrorCode.NO_ERROR)
        self._forget(stream)

    def _on_response(self, stream_id: int, block: bytes, ended: bool) -> None:
        # Decoded in any case: what it does to the table counts for the blocks after it.
        headers = None if block == self._answer_block else self._decode(block)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._require_not_idle(stream_id, "HEADERS")
            self._spend_ignored()
            return
        try:
            status, fields = self._last_answer if headers is None else h.read_response(headers)
        except h.MalformedError as exc:
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, str(exc))
            return
        if headers is not None and len(block) <= h.MAX_REMEMBERED_BYTES and h.is_stateless(block):
            self._answer_block, self._last_answer = block, (status, fields)
        if stream.answered or stream.remote_closed or (ended and status < 200):
            self._stream_error(stream, ErrorCode.PROTOCOL_ERROR, "HEADERS on an open CONNECT")
        elif status < 200:
            self._spend_ignored()  # RFC 9113 8.1: informational; the answer is still to come.
        else:
            self._answered(stream, status, fields, ended)

    def _answered(self, stream: Stream, status: int, fields: h.Headers, ended: bool) -> None:
        stream.answered = True
        self._events.append(ResponseReceived(stream, status, fields))
        if status >= 300:
            if not ended:
                self._reset(stream.stream_id, ErrorCode.CANCEL)
            else:
                self.output += f.frame(f.DATA, f.END_STREAM, stream.stream_id)
            self._forget(stream)
        elif ended:
            self._remote_end(stream)

    # Small things ----------------------------------------------------------------------------

    def _greet(self) -> None:
        values = [
            (f.ENABLE_PUSH, 0),
            (f.INITIAL_WINDOW_SIZE, FIRST_WINDOW_BYTES),
            (f.MAX_FRAME_SIZE, MAX_FRAME_BYTES),
            (f.MAX_HEADER_LIST_SIZE, h.MAX_HEADER_LIST_BYTES),
        ]
        if self.role is Role.SERVER:
            # A server has no say in ENABLE_PUSH (RFC 9113 6.5.2).
            values[0] = (f.MAX_CONCURRENT_STREAMS, self._max_streams)
        else:
            self.output += f.PREFACE
        self.output += f.settings(values)
        self.output += f.window_update(0, CONNECTION_WINDOW_BYTES - f.DEFAULT_WINDOW)

    def _is_idle(self, stream_id: int) -> bool:
        if self.role is Role.CLIENT:
            return stream_id >= self._next_id or not stream_id % 2
        return stream_id > self._last_peer_id

    def _streams_total(self) -> int:
        return self._streams_seen if self.role is Role.SERVER else self._next_id // 2

    def _new_stream(self, stream_id: int) -> Stream:
        self._windows.left -= FIRST_WINDOW_BYTES  # ``charge``, without a call for each stream.
        return self._stream_type(stream_id, self.peer_first_window, FIRST_WINDOW_BYTES)

    def _stream_error(self, stream: Stream, code: ErrorCode, reason: str) -> None:
        """The peer's fault, but this stream's only; counted, or it would be a free reset."""
        self._spend_reset()
        self._reset(stream.stream_id, code)
        self._forget(stream)
        self._batch = None
        self._events.append(StreamReset(stream, code, False, reason))

    def _reset(self, stream_id: int, code: ErrorCode) -> None:
        self._resets.append(stream_id)
        self.output += f.rst_stream(stream_id, code)

    def _forget(self, stream: Stream) -> None:
        del self.streams[stream.stream_id]
        stream.local_closed = stream.remote_closed = True
        stream.tail = b""
        self._windows.left += stream.window  # ``give``.
        if self._current is stream:
            self._current = None
        if self._ending is stream:
            self._ending = None

    def _spend_reset(self) -> None:
        if not self._premature.spend(self._now):
            raise HboneError(ErrorCode.ENHANCE_YOUR_CALM, "flood of resets")

    def _spend_ignored(self) -> None:
        if self._ignored.spend(self._now):
            return
        # A busy connection has leftovers of its own: every reset crosses frames that were under way.
        self._leftovers += 1
        if self._leftovers > budget.LEFTOVERS_PER_STREAM * self._streams_total():
            raise HboneError(ErrorCode.ENHANCE_YOUR_CALM, "flood of frames without effect")

    def _require_unanswered(self, stream: Stream) -> None:
        if not self._serving or stream.answered or stream.stream_id not in self.streams:
            raise LocalProtocolError(f"stream {stream.stream_id} cannot be answered")

    def _require_not_idle(self, stream_id: int, what: str) -> None:
        if not stream_id or self._is_idle(stream_id):
            raise HboneError(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {stream_id}")

    @staticmethod
    def _require_connection(stream_id: int, what: str) -> None:
        if stream_id:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, f"{what} on stream {stream_id}")

    @staticmethod
    def _require_size(payload: bytes, size: int) -> None:
        if len(payload) != size:
            raise HboneError(ErrorCode.FRAME_SIZE_ERROR, f"{len(payload)} bytes, not {size}")


def _header_block(flags: int, payload: bytes) -> tuple[bytes, int]:
    """The block inside a HEADERS frame, and the stream it depends on (0: none)."""
    start, end, dependency = 0, len(payload), 0
    if flags & f.PADDED:
        if not payload:
            raise HboneError(ErrorCode.FRAME_SIZE_ERROR, "padded HEADERS without a pad length")
        start, end = 1, end - payload[0]
    if flags & f.HAS_PRIORITY:
        if end - start < 5:
            raise HboneError(ErrorCode.FRAME_SIZE_ERROR, "HEADERS without their priority")
        dependency = f.UINT32.unpack_from(payload, start)[0] & f.MAX_STREAM_ID
        start += 5
    if start > end:
        raise HboneError(ErrorCode.PROTOCOL_ERROR, "padding over the frame's length")
    return payload[start:end], dependency
