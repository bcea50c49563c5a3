"""The client's side of HBONE: streams are opened, and their answers judged.

Floor 1: sans-IO.
"""

from __future__ import annotations

from ambient.errors import LocalProtocolError
from ambient.own_code import own_code
from ambient.wire import hbone_budget as budget
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from ambient.wire.hbone import HboneConnection
from ambient.wire.hbone_budget import WindowBudget
from ambient.wire.hbone_events import AnyStream, ResponseReceived, Stream
from ambient.wire.hbone_frames import ErrorCode


@own_code
class HboneClient(HboneConnection):
    """A connection on which we open the streams."""

    __slots__ = ("_answer_block", "_last_answer", "_next_id")

    _serving = False

    def __init__(self, *, windows: WindowBudget | None = None, stream_type: type[Stream] = Stream) -> None:
        super().__init__(windows=windows, stream_type=stream_type)
        self.peer_max_streams = budget.PREMATURE_RESETS  # Until it says how many.
        self._next_id = 1
        # The last answer that meant the same whatever came before it: the next is nearly always the same.
        self._answer_block = b""
        self._last_answer: tuple[int, h.Headers] = 0, ()
        self.output += f.PREFACE
        self._greet((f.ENABLE_PUSH, 0))

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
        if not self.can_open:
            raise LocalProtocolError("no stream can be opened")
        block = headers if isinstance(headers, bytes) else h.encode_request(authority, headers)
        stream = self._new_stream(self._next_id)
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        self.output += f.frame(f.HEADERS, f.END_HEADERS, stream.stream_id, block)
        return stream

    def _usual_headers(self, stream_id: int, block: bytes) -> bool:
        # The answer that the last one was: the peer's SETTINGS came before that, and the block changes
        # nothing for others. That is all that ``_starts`` and ``_on_headers`` ask.
        stream = self.streams.get(stream_id)
        status, fields = self._last_answer
        if (
            block != self._answer_block
            or stream is None
            or stream.answered
            or stream.remote_closed
            or not 200 <= status < 300
            or self._block_stream
        ):
            return False
        self._batch = None
        stream.answered = True
        self._events.append(ResponseReceived(stream, status, fields))
        return True

    def _block_done(self, stream_id: int, flags: int, block: bytes) -> None:
        self._batch = None
        self._on_response(stream_id, block, bool(flags & f.END_STREAM))

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

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id >= self._next_id or not stream_id % 2

    def _streams_total(self) -> int:
        return self._next_id // 2
