"""The streams of an HBONE connection: what lives on it, and how much may be sent on each.

Floor 1: sans-IO; the parser is below (``hbone_split``), the frames that are no DATA are above (``hbone``).

A stream's window starts at 64 KiB and doubles while the application consumes all that comes, up to
4 MiB, as long as the process-wide budget lasts: a stalled stream stays small. The
connection's window is returned on receipt, so that a stalled stream never starves its neighbours;
what bounds memory is the sum of the streams' windows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from typing import ClassVar

from ambient.wire import hbone_budget as budget
from ambient.wire import hbone_frames as f
from ambient.wire.hbone_budget import WindowBudget
from ambient.wire.hbone_events import Rejection, Stream, StreamReset, WindowOpened
from ambient.wire.hbone_frames import ErrorCode
from ambient.wire.hbone_split import MAX_FRAME_BYTES, FrameSplitter, HboneError

# First and greatest width of a stream's window, and the connection's (Istio's are fixed at the last two).
FIRST_WINDOW_BYTES = 64 * 1024
LARGEST_WINDOW_BYTES = 4 * 1024 * 1024
CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
# A stream has to carry so many windows before the next is twice as wide: what the kernel takes for an
# application that never reads (some 400 KiB, measured) must not pass for draining.
GROW_AFTER_WINDOWS = 8
# The connection's window is given back once a quarter of it is used.
CONNECTION_UPDATE_BELOW = CONNECTION_WINDOW_BYTES * 3 // 4
# Streams we reset: the peer may not know yet, so what it still sends on them is dropped in silence.
REMEMBERED_RESETS = 256


class StreamTable(FrameSplitter):
    """Streams by number, their windows and the connection's, and what a peer may do to them.

    Args:
        stream_type: What the streams are made of.

    Attributes:
        streams: Live streams by id.
        peer_first_window: What a new stream may be sent.
        send_window: What the peer lets us send over all streams.
        output: What ``take_output`` will give; only to be looked at.
    """

    __slots__ = (
        "_block_stream", "_empty_data", "_ignored", "_leftovers", "_now", "_premature", "_receive_window",
        "_resets", "_stream_type", "_updates", "_windows", "data_bytes_sent", "data_frames_sent", "output",
        "peer_first_window", "send_window", "streams",
    )  # fmt: skip

    # Which side of the CONNECT we are.
    _serving: ClassVar[bool]

    def __init__(self, windows: WindowBudget | None, stream_type: type[Stream]) -> None:
        super().__init__(preface=self._serving)
        self._stream_type = stream_type
        self._windows = windows or WindowBudget()
        self.streams: dict[int, Stream] = {}
        self.send_window = f.DEFAULT_WINDOW
        self.peer_first_window = f.DEFAULT_WINDOW
        self.data_frames_sent = 0
        self.data_bytes_sent = 0
        self.output = bytearray()
        self._receive_window = CONNECTION_WINDOW_BYTES
        self._resets: deque[int] = deque(maxlen=REMEMBERED_RESETS)
        self._block_stream = 0  # Whose header block is unfinished; 0: none.
        self._now = 0.0
        self._empty_data = 0
        self._updates = 0
        self._leftovers = 0
        self._ignored = budget.Rate(budget.IGNORED_PER_SECOND)
        self._premature = budget.ResetBudget.fresh()

    # Sending -----------------------------------------------------------------------------------

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
        self.output += f.frame(f.DATA, f.END_STREAM, stream.stream_id)
        if stream.remote_closed:
            self._forget(stream)

    def reset(self, stream: Stream, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """End *stream* in both directions; without effect if it has ended already."""
        if self.streams.get(stream.stream_id) is stream:
            self._reset(stream.stream_id, code)
            self._forget(stream)

    # Giving back -------------------------------------------------------------------------------

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

    def release(self) -> None:
        """The connection is gone: return every grown window to the budget."""
        for stream in list(self.streams.values()):
            self._forget(stream)
        # Or what came last and its streams, which know their connection, would keep each other alive.
        self._events, self._batch = [], None

    # DATA --------------------------------------------------------------------------------------

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
        if stream is None or stream.remote_closed or not stream.answered or stream.rejection is not None:
            return None
        self._empty_data = 0
        self._batch = None
        stream.remote_closed = True
        if stream.local_closed:
            self._forget(stream)
        return stream

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
        elif not self._serving and not stream.answered:
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

    # The peer's windows ------------------------------------------------------------------------

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

    def _set_first_window(self, value: int) -> None:
        if value > f.MAX_WINDOW:
            raise HboneError(ErrorCode.FLOW_CONTROL_ERROR, f"INITIAL_WINDOW_SIZE of {value}")
        change = value - self.peer_first_window
        self.peer_first_window = value
        for stream in self.streams.values():
            stream.send_window += change
            if stream.send_window > f.MAX_WINDOW:
                raise HboneError(ErrorCode.FLOW_CONTROL_ERROR, "stream window over 2^31-1")

    # Beginnings and ends -----------------------------------------------------------------------

    def _new_stream(self, stream_id: int) -> Stream:
        self._windows.charge(FIRST_WINDOW_BYTES)
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
        self._windows.give(stream.window)
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

    # What depends on the role --------------------------------------------------------------------

    @abstractmethod
    def _is_idle(self, stream_id: int) -> bool:
        """Whether nobody has opened that stream yet."""

    @abstractmethod
    def _streams_total(self) -> int:
        """How many there were."""

    def answer_rejected(self, stream: Stream) -> None:
        """Answer a rejected request although it goes on; without effect if it was answered or is gone."""

    def _send_tails(self) -> None:
        """The connection has room: send what waits of answers."""

    def _send_tail(self, stream: Stream) -> None:
        """The stream has."""
