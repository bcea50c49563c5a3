"""The server's side of HBONE: requests are judged, and answered once.

Floor 1: sans-IO. Requests that no HBONE peer sends are answered here, and nobody else need ask for them.
"""

from __future__ import annotations

from ambient.errors import LocalProtocolError
from ambient.own_code import own_code
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from ambient.wire.hbone import HboneConnection
from ambient.wire.hbone_budget import WindowBudget
from ambient.wire.hbone_events import Rejection, RequestReceived, RequestRejected, Stream
from ambient.wire.hbone_frames import ErrorCode
from ambient.wire.hbone_split import HboneError

# Istio's server advertises the same.
MAX_SERVER_STREAMS = 200


@own_code
class HboneServer(HboneConnection):
    """A connection whose peer opens the streams."""

    __slots__ = ("_max_streams", "_requests", "_streams_seen")

    _serving = True

    def __init__(
        self,
        *,
        windows: WindowBudget | None = None,
        max_streams: int = MAX_SERVER_STREAMS,
        stream_type: type[Stream] = Stream,
    ) -> None:
        self._max_streams = max_streams
        self._requests = h.RequestReader()
        self._streams_seen = 0
        super().__init__(windows=windows, stream_type=stream_type)
        # A server has no say in ENABLE_PUSH (RFC 9113 6.5.2).
        self._greet((f.MAX_CONCURRENT_STREAMS, max_streams))

    def accept(self, stream: Stream, headers: h.Headers = ()) -> None:
        """Answer 200; DATA may follow."""
        self._require_unanswered(stream)
        stream.answered = True
        block = h.encode_response(200, headers)
        self.output += f.frame(f.HEADERS, f.END_HEADERS, stream.stream_id, block)

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

    # Requests ----------------------------------------------------------------------------------

    def _usual_headers(self, stream_id: int, block: bytes) -> bool:
        # A request that begins as an earlier one did: the peer's SETTINGS came before that, and the block
        # changes nothing for others. That is all that ``_starts`` and ``_on_headers`` ask.
        if self._block_stream or stream_id <= self._last_peer_id:
            return False
        request = self._requests.read(block)
        if request is None:
            return False
        self._batch = None
        if (opened := self._admit(stream_id, False)) is not None:
            self._connect(opened, request)
        return True

    def _block_done(self, stream_id: int, flags: int, block: bytes) -> None:
        self._batch = None
        ended = bool(flags & f.END_STREAM)
        request = self._requests.read(block) if stream_id > self._last_peer_id else None
        if request is None:
            self._on_request(stream_id, self._decode(block), block, ended)
        elif (stream := self._admit(stream_id, ended)) is not None:
            self._connect(stream, request)

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

    def _remote_end(self, stream: Stream) -> None:
        if stream.rejection is None:
            super()._remote_end(stream)
        else:
            stream.remote_closed = True
            self.answer_rejected(stream)

    # Answers -----------------------------------------------------------------------------------

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

    def _require_unanswered(self, stream: Stream) -> None:
        if stream.answered or stream.stream_id not in self.streams:
            raise LocalProtocolError(f"stream {stream.stream_id} cannot be answered")

    def _is_idle(self, stream_id: int) -> bool:
        return stream_id > self._last_peer_id or not stream_id % 2  # RFC 9113 5.1.1: those would be ours.

    def _streams_total(self) -> int:
        return self._streams_seen
