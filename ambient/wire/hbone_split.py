"""Cutting the byte stream into frames; DATA passes through in place, as it comes.

Floor 1: sans-IO. A frame other than DATA is gathered whole, but only after its length was judged;
DATA and frames to be ignored are never gathered. ``HboneConnection`` is the one subclass.

    +-----------------+----------+-----------+-------------------+
    | length (24)     | type (8) | flags (8) | R, stream id (31) |   9 bytes, then the payload
    +-----------------+----------+-----------+-------------------+
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from ambient.errors import RemoteProtocolError
from ambient.wire import hbone_frames as f
from ambient.wire.hbone_events import AnyStream, DataReceived, Event, Stream, StreamEnded
from ambient.wire.hbone_frames import ErrorCode

# Our SETTINGS_MAX_FRAME_SIZE, Istio's. DATA is not gathered, so its size costs no memory.
MAX_FRAME_BYTES = 1024 * 1024
# A frame that has to be gathered: the smallest maximum of RFC 9113 4.2, so every peer may count on it.
# Nothing longer makes sense: it holds a header block as large as we accept (``MAX_HEADER_LIST_SIZE``).
MAX_GATHERED_BYTES = f.DEFAULT_MAX_FRAME

# Messages are taken one by one; larger ones are gathered, so that each stream's bytes leave together. Picked.
MAX_MESSAGE_BYTES = 4 * 1024

# Header blocks that are looked at for being the usual ones; picked.
MAX_USUAL_BLOCK_BYTES = 2048

_STREAM_MASK = 0x7FFF_FFFF

unpack_header = f.FRAME_HEADER.unpack_from


class HboneError(RemoteProtocolError):
    """The peer broke HTTP/2 in a way that ends the connection; *code* goes into our GOAWAY.

    Attributes:
        events: What the same bytes said before: a stream that they reset is gone from the connection.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}")
        self.code = code
        self.events: list[Event] = []


class FrameSplitter(ABC):
    """The parser's half of a connection: state between two reads, and the loop over one.

    Attributes:
        message_end: Where what ``take_message`` took ends.
    """

    __slots__ = (
        "_batch", "_between", "_broken", "_current", "_ending", "_events", "_left", "_pad_unknown",
        "_padding", "_preface", "_stash", "_wanted", "message_end",
    )  # fmt: skip

    def __init__(self, *, preface: bool) -> None:
        self._preface = f.PREFACE if preface else b""
        self._stash = bytearray()  # The beginning of a header, or of a frame to be gathered.
        self._wanted = 0  # Bytes the stash must have before it means something; 0: no stash.
        self._left = 0  # Payload of the current DATA or ignored frame still to come.
        self._current: Stream | None = None  # Whose payload it is; None: nobody's, drop it.
        self._pad_unknown = False  # The next byte is the frame's pad length.
        self._padding = 0
        self._ending: Stream | None = None  # Ends with the current frame.
        self._events: list[Event] = []
        self._between = not preface  # What comes next begins a frame, of any kind.
        self._broken = False
        self.message_end = 0
        self._batch: DataReceived | None = None  # The event that further slices of its stream join.

    def _parse(self, data: memoryview) -> None:
        # The hot path: small messages spend a third of their CPU time in Python, so this is one loop.
        position = self._read_preface(data) if self._preface else 0
        end = len(data)
        while position < end:
            if self._left:
                position = self._payload(data, position, end)
            elif self._wanted:
                position = self._unstash(data, position, end)
            elif end - position < 9:
                self._wanted = 9
                self._stash += data[position:]
                return
            else:
                size_and_kind, flags, stream_id = unpack_header(data, position)
                size, kind = size_and_kind >> 8, size_and_kind & 0xFF
                if (
                    not kind
                    and flags <= f.END_STREAM
                    and (stream := self._usual_data(stream_id, size)) is not None
                ):
                    position += 9
                    if size > end - position:
                        self._left, self._current = size, stream
                        self._ending = stream if flags else None
                        continue
                    part = data[position : position + size]
                    position += size
                    batch = self._batch
                    if batch is not None and batch.stream is stream:
                        batch.parts.append(part)
                        batch.total += size
                    else:
                        batch = self._batch = DataReceived(stream, [part], size)
                        self._events.append(batch)
                    if flags:
                        self._remote_end(stream)
                elif (
                    kind == f.HEADERS
                    and flags == f.END_HEADERS
                    and size <= MAX_USUAL_BLOCK_BYTES
                    and 9 + size <= end - position
                    and self._usual_headers(
                        stream_id & _STREAM_MASK, bytes(data[position + 9 : position + 9 + size])
                    )
                ):
                    position += 9 + size
                elif self._starts(kind, flags, stream_id & _STREAM_MASK, size):
                    position += 9
                elif end - position < 9 + size:
                    self._wanted = 9 + size
                    self._stash += data[position:]
                    return
                else:
                    payload = bytes(data[position + 9 : position + 9 + size])
                    position += 9 + size
                    self._control(kind, flags, stream_id & _STREAM_MASK, payload)

    def take_message(self, data: memoryview, position: int) -> AnyStream | None:
        """The stream of the DATA frame that begins at *position*, if it is whole, small and in order.

        Its payload ends at ``message_end`` and its windows are charged; without a payload it is the
        stream's end. None: nothing has happened, and ``receive_data`` says what the bytes from *position*
        on mean.
        """
        left = len(data) - position
        if left < 9 or not self._between:
            return None
        size_and_kind, flags, stream_id = unpack_header(data, position)
        size = size_and_kind >> 8
        if size_and_kind & 0xFF or flags > f.END_STREAM or size > MAX_MESSAGE_BYTES or size + 9 > left:
            return None
        self.message_end = position + 9 + size
        if not flags:
            return self._usual_data(stream_id, size)
        return None if size else self._usual_end(stream_id)

    def _payload(self, data: memoryview, position: int, end: int) -> int:
        """Hand on what there is of the current payload."""
        if self._pad_unknown:
            self._pad_known(data[position])
            return position + 1
        stop = min(end, position + self._left)
        stream = self._current
        if stream is not None:
            size = stop - position
            batch = self._batch
            if batch is not None and batch.stream is stream:
                batch.parts.append(data[position:stop])
                batch.total += size
            else:
                batch = self._batch = DataReceived(stream, [data[position:stop]], size)
                self._events.append(batch)
        self._left -= stop - position
        if not self._left:
            self._payload_done()
        return stop

    def _pad_known(self, padding: int) -> None:
        self._pad_unknown = False
        self._left -= 1
        if padding > self._left:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, "padding over the frame's length")
        self._left -= padding
        self._padding = padding
        if self._current is not None:
            self.credit(self._current, padding + 1)
        if not self._left:
            self._payload_done()

    def _payload_done(self) -> None:
        if self._padding:
            self._left, self._padding, self._current = self._padding, 0, None
            return
        stream, self._ending = self._ending, None
        if stream is not None:
            self._remote_end(stream)

    def _unstash(self, data: memoryview, position: int, end: int) -> int:
        """Complete the header, or the frame, whose beginning came with an earlier read."""
        stash = self._stash
        stop = min(end, position + self._wanted - len(stash))
        stash += data[position:stop]
        if len(stash) < self._wanted:
            return stop
        size_and_kind, flags, stream_id = unpack_header(stash)
        size, kind = size_and_kind >> 8, size_and_kind & 0xFF
        stream_id &= _STREAM_MASK
        if self._wanted == 9:
            if self._starts(kind, flags, stream_id, size):
                self._drop_stash()
                return stop
            if size:
                self._wanted = 9 + size
                return stop
        payload = bytes(stash[9:])
        self._drop_stash()
        self._control(kind, flags, stream_id, payload)
        return stop

    def _drop_stash(self) -> None:
        self._stash.clear()
        self._wanted = 0

    def _read_preface(self, data: memoryview) -> int:
        size = min(len(self._preface), len(data))
        if data[:size] != self._preface[:size]:
            raise HboneError(ErrorCode.PROTOCOL_ERROR, "not HTTP/2")
        self._preface = self._preface[size:]
        return size

    def _remote_end(self, stream: Stream) -> None:
        stream.remote_closed = True
        self._batch = None
        self._events.append(StreamEnded(stream))
        if stream.local_closed:
            self._forget(stream)

    # What the connection decides -----------------------------------------------------------------

    @abstractmethod
    def _starts(self, kind: int, flags: int, stream_id: int, size: int) -> bool:
        """Judge a frame by its header; True: its payload is not to be gathered."""

    @abstractmethod
    def _usual_data(self, stream_id: int, size: int) -> Stream | None:
        """The stream of a DATA frame without padding, its windows charged; None: let ``_starts`` judge it."""

    @abstractmethod
    def _usual_end(self, stream_id: int) -> Stream | None:
        """The stream that an empty DATA frame ended; None: let ``_starts`` judge it."""

    @abstractmethod
    def _usual_headers(self, stream_id: int, block: bytes) -> bool:
        """Obey a whole block without padding or priority; False: let ``_starts`` judge it."""

    @abstractmethod
    def _control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Obey one gathered frame."""

    @abstractmethod
    def credit(self, stream: Stream, amount: int) -> None:
        """Give the peer *amount* bytes of the stream's window back."""

    @abstractmethod
    def _forget(self, stream: Stream) -> None:
        """Both directions have ended."""
