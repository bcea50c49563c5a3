"""The least HTTP/1.1 a load generator needs: where a response ends, and whether it is a good one.

Floor 5, sans-IO. Only responses to GET; a length or chunks, no trailers to keep. Not for proxies: those
parse with ``ambient.wire.http1``, which is strict where this one is quick.

Source: RFC 9112 sections 6 and 7.1.
"""

from __future__ import annotations

from ambient.errors import RemoteProtocolError

# Heads of real servers stay below 2 KiB; picked, not measured.
MAX_HEAD_BYTES = 16 * 1024

_START = b"HTTP/1."
_END_OF_HEAD = b"\r\n\r\n"


class ResponseReader:
    """Reads one response after another from one connection.

    Attributes:
        status: Of the response that was completed last.
        body_bytes: Of the same one.
        keep_alive: Whether the connection may carry another request.
    """

    def __init__(self) -> None:
        self.status = 0
        self.body_bytes = 0
        self.keep_alive = True
        self._buffer = b""
        self._left = -1  # Body bytes still to come; -1 before the head is complete.
        self._chunked = False

    def feed(self, data: bytes) -> bool:
        """Add *data*; return whether it completed a response.

        Raises:
            RemoteProtocolError: no HTTP/1.1 response, one without an end, or bytes after the end.
        """
        if self._left > 0 and not self._buffer:
            return self._count(len(data))
        self._buffer += data
        if self._left < 0 and not self._chunked and not self._read_head():
            return False
        return self._read_chunks() if self._chunked else self._take_body()

    def _count(self, received: int) -> bool:
        """The quick path: the middle of a long body is counted, never kept."""
        if received > self._left:
            raise RemoteProtocolError("bytes after the end of a response")
        self._left -= received
        return self._left == 0 and self._done()

    def _read_head(self) -> bool:
        end = self._buffer.find(_END_OF_HEAD)
        if end < 0:
            self._refuse_early()
            return False
        head = self._buffer[:end]
        self._buffer = self._buffer[end + len(_END_OF_HEAD) :]
        self._read_status(head)
        self._read_framing(head.lower())
        return True

    def _refuse_early(self) -> None:
        """What cannot become a response is not waited for."""
        if len(self._buffer) > MAX_HEAD_BYTES:
            raise RemoteProtocolError(f"response head over {MAX_HEAD_BYTES} bytes")
        if self._buffer[: len(_START)] != _START[: len(self._buffer)]:
            raise RemoteProtocolError(f"not an HTTP/1.1 response: {self._buffer[:40]!r}")

    def _read_status(self, head: bytes) -> None:
        if head[: len(_START)] != _START or not head[9:12].isdigit():
            raise RemoteProtocolError(f"not an HTTP/1.1 response: {head[:40]!r}")
        self.status = int(head[9:12])

    def _read_framing(self, lower: bytes) -> None:
        self.keep_alive = b"\r\nconnection: close" not in lower
        if b"\r\ntransfer-encoding:" in lower:
            self._chunked = True
            self.body_bytes = 0
            return
        at = lower.find(b"\r\ncontent-length:")
        if at < 0:
            raise RemoteProtocolError("a response with neither length nor chunks")
        line = lower[at + 17 :].partition(b"\r\n")[0].strip()
        if not line.isdigit():
            raise RemoteProtocolError(f"not a length: {line[:20]!r}")
        self._left = self.body_bytes = int(line)

    def _take_body(self) -> bool:
        received, self._buffer = len(self._buffer), b""
        return self._count(received)

    def _read_chunks(self) -> bool:
        while True:
            size_line, found, rest = self._buffer.partition(b"\r\n")
            if not found:
                return False
            try:
                size = int(size_line.partition(b";")[0], 16)
            except ValueError as exc:
                raise RemoteProtocolError(f"not a chunk size: {size_line[:20]!r}") from exc
            if len(rest) < size + 2:
                return False
            self._buffer = rest[size + 2 :]
            if size == 0:
                return self._end_of_chunks()
            self.body_bytes += size

    def _end_of_chunks(self) -> bool:
        if self._buffer:
            raise RemoteProtocolError("bytes after the end of a response")
        return self._done()

    def _done(self) -> bool:
        self._left = -1
        self._chunked = False
        return True
