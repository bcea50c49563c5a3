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

The windows are in ``hbone_streams``, the two roles in ``hbone_client`` and ``hbone_server``; here is what
both make of frames that are no DATA.
"""

from __future__ import annotations

from abc import abstractmethod

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
    SettingsReceived,
    Stream,
    StreamReset,
)
from ambient.wire.hbone_frames import ErrorCode
from ambient.wire.hbone_split import MAX_FRAME_BYTES, MAX_GATHERED_BYTES, HboneError
from ambient.wire.hbone_streams import CONNECTION_WINDOW_BYTES, FIRST_WINDOW_BYTES, StreamTable

# Debug text of a GOAWAY that we keep.
MAX_DEBUG_BYTES = 256
GOODBYE_PING = b"goodbye?"
# Whole, and neither padded nor with a priority.
_ODD_HEADERS = f.END_HEADERS | f.PADDED | f.HAS_PRIORITY


class HboneConnection(StreamTable):
    """One connection, of either role. After a ``RemoteProtocolError`` only ``take_output`` may be called (it
    holds our GOAWAY).

    Attributes:
        peer_max_frame: The largest DATA we may send.
        peer_max_streams: How many streams we may have open.
        closing: A GOAWAY was sent or received: no new streams.
    """

    __slots__ = (
        "_block", "_block_flags", "_continuations", "_decoder", "_goodbye_due", "_last_peer_id", "_pings",
        "_priorities", "_refuse_above", "_settings_rate", "_settled", "closing", "peer_max_frame",
        "peer_max_streams",
    )  # fmt: skip

    def __init__(self, *, windows: WindowBudget | None = None, stream_type: type[Stream] = Stream) -> None:
        super().__init__(windows, stream_type)
        self.peer_max_frame = f.DEFAULT_MAX_FRAME
        self.peer_max_streams = 0
        self.closing = False
        self._goodbye_due = False
        self._last_peer_id = 0
        self._refuse_above = f.MAX_STREAM_ID  # Streams above it came after our final GOAWAY.
        self._decoder = h.HeaderDecoder()
        self._block = bytearray()
        self._block_flags = 0
        self._continuations = 0
        self._settled = False  # The peer's first SETTINGS came.
        self._priorities = 0
        self._pings = budget.Rate(budget.PINGS_PER_SECOND)
        self._settings_rate = budget.Rate(budget.SETTINGS_PER_SECOND)

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
        self._between = False
        try:
            self._parse(data)
        except HboneError as exc:
            self._broken = self.closing = True
            self.output += f.goaway(self._last_peer_id, exc.code, str(exc).encode()[:MAX_DEBUG_BYTES])
            exc.events = events
            raise
        self._between = not (self._left or self._wanted or self._preface or self._block_stream)
        return events

    @property
    def settled(self) -> bool:
        """Whether the peer's first SETTINGS came."""
        return self._settled

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

    # What one role can do, and the other cannot ---------------------------------------------------

    @property
    def can_open(self) -> bool:
        """Whether ``open`` is allowed now."""
        return False

    def open(self, authority: str, headers: h.Headers | h.EncodedRequest = ()) -> AnyStream:
        """Send a CONNECT; headers that are encoded already hold the authority too.

        Raises:
            LocalProtocolError: not a client, no room (``can_open``), or headers that cannot be sent.
        """
        raise LocalProtocolError("no stream can be opened")

    def accept(self, stream: Stream, headers: h.Headers = ()) -> None:
        """Answer 200; DATA may follow."""
        raise LocalProtocolError(f"stream {stream.stream_id} cannot be answered")

    def refuse(self, stream: Stream, status: int, text: str = "") -> None:
        """Answer *status* with *text* as its whole body, and end the stream."""
        raise LocalProtocolError(f"stream {stream.stream_id} cannot be answered")

    @abstractmethod
    def _block_done(self, stream_id: int, flags: int, block: bytes) -> None:
        """Obey a whole header block."""

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
        if self._serving and not stream.answered:
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
        many = len(payload) > budget.SETTINGS_PER_FRAME * f.SETTING.size
        if many or not self._settings_rate.spend(self._now):
            raise HboneError(ErrorCode.ENHANCE_YOUR_CALM, "flood of SETTINGS")
        if not self._settled and not self._serving:
            self.peer_max_streams = f.MAX_STREAM_ID
        self._settled = True
        for identifier, value in f.SETTING.iter_unpack(payload):
            self._set(identifier, value)
        self.output += f.frame(f.SETTINGS, f.ACK, 0)
        self._events.append(SettingsReceived())
        self._send_tails()

    def _set(self, identifier: int, value: int) -> None:
        match identifier:
            case f.ENABLE_PUSH if value > (1 if self._serving else 0):
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

    def _on_goaway(self, stream_id: int, payload: bytes) -> None:
        self._require_connection(stream_id, "GOAWAY")
        if len(payload) < 8:
            raise HboneError(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a broken length")
        self._spend_ignored()
        last = f.UINT32.unpack_from(payload)[0] & f.MAX_STREAM_ID
        code = f.UINT32.unpack_from(payload, 4)[0]
        self.closing = True
        self._batch = None
        if not self._serving:
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

    def _greet(self, role: tuple[int, int]) -> None:
        """Send our SETTINGS, of which one, *role*, is the role's own, and open the connection's window."""
        values = [
            role,
            (f.INITIAL_WINDOW_SIZE, FIRST_WINDOW_BYTES),
            (f.MAX_FRAME_SIZE, MAX_FRAME_BYTES),
            (f.MAX_HEADER_LIST_SIZE, h.MAX_HEADER_LIST_BYTES),
        ]
        self.output += f.settings(values)
        self.output += f.window_update(0, CONNECTION_WINDOW_BYTES - f.DEFAULT_WINDOW)


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
