"""HTTP/1.1 heads as values, and back to bytes for the next hop.

Floor 1: sans-IO. ``ambient.wire.http1`` makes these from bytes; nothing is ever forwarded as it was
received: a head is written anew from what was understood, so that no two readers of it can disagree.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, TypeAlias

Header: TypeAlias = tuple[bytes, bytes]  # the name in lower case, the value without outer blanks

_FORBIDDEN_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class End:
    """The type of ``END``: the message is complete, its body included."""

    def __repr__(self) -> str:
        return "END"


END: Final = End()


# Heads are built once per request on the path that is compared with Envoy: a frozen dataclass would
# double the cost of building one, so these are frozen by agreement only.
@dataclass(slots=True)
class RequestHead:
    """One request without its body, as understood, not as spelled.

    Attributes:
        target: Origin form (``/path?query``) or ``*``; absolute forms are brought to this.
        host: The authority the client asked for; ``b""`` only with HTTP/1.0.
        headers: End-to-end headers without ``host``, ``content-length`` and ``expect``.
        content_length: Bytes of body announced; -1 if none was.
        keep_alive: Whether the client would send another request on this connection.
    """

    method: bytes
    target: bytes
    host: bytes = b""
    headers: list[Header] = field(default_factory=list)
    content_length: int = -1
    chunked: bool = False
    minor: int = 1
    keep_alive: bool = True
    expects_continue: bool = False
    upgrade: bytes = b""

    @property
    def has_body(self) -> bool:
        """Whether body bytes may follow."""
        return self.chunked or self.content_length > 0


@dataclass(slots=True)
class ResponseHead:
    """One response without its body. Statuses 1xx are followed by another head, not by ``END``.

    Attributes:
        content_length: As announced; -1 if not. Announced is not sent: see ``bodiless``.
        chunked: The body comes in chunks.
        bodiless: No body follows whatever the headers say (HEAD, 1xx, 204, 304).
        keep_alive: Whether the connection can carry another request afterwards.
    """

    status: int
    headers: list[Header] = field(default_factory=list)
    content_length: int = -1
    chunked: bool = False
    bodiless: bool = False
    minor: int = 1
    keep_alive: bool = True

    @property
    def until_close(self) -> bool:
        """Whether only the end of the connection ends the body."""
        return not (self.bodiless or self.chunked or self.content_length >= 0)


@dataclass(frozen=True, slots=True)
class Refused:
    """The peer broke a rule: answer *status* (a server may), then close. Nothing follows this event."""

    status: int
    reason: str


RequestEvent: TypeAlias = "RequestHead | bytes | End | Refused"
ResponseEvent: TypeAlias = "ResponseHead | bytes | End | Refused"


_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_STATUS_LINES = {code: b"HTTP/1.1 %d %b\r\n" % (code, reason) for code, reason in _REASONS.items()}
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"


def encode_request(head: RequestHead, extra: bytes = b"") -> bytes:
    """Write *head* for the next hop: HTTP/1.1, kept alive, framing as the head says.

    Args:
        head: From a ``RequestParser``, or made of ``header()`` values.
        extra: Complete header lines of our own, each ending in CRLF.
    """
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (head.method, head.target, head.host)]
    lines += [b"%b: %b\r\n" % header for header in head.headers]
    if head.chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    elif head.content_length >= 0:
        lines.append(b"content-length: %d\r\n" % head.content_length)
    lines.append(extra)
    lines.append(b"\r\n")
    return b"".join(lines)


def encode_response(head: ResponseHead, minor: int = 1, close: bool = False, extra: bytes = b"") -> bytes:
    """Write *head* for a client that spoke HTTP/1.*minor*.

    A body without a length goes in chunks to HTTP/1.1, and until the connection closes to HTTP/1.0;
    the caller frames it by ``chunks_response`` and closes where ``close`` or the latter says so.
    """
    status = head.status
    lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
    lines += [b"%b: %b\r\n" % header for header in head.headers]
    if head.content_length >= 0:
        if status >= 200 and status != 204:
            lines.append(b"content-length: %d\r\n" % head.content_length)
    elif not head.bodiless and minor == 1:
        lines.append(b"transfer-encoding: chunked\r\n")
    if status >= 200:
        lines.append(extra)
        if close or (minor == 0 and head.content_length < 0):
            lines.append(b"connection: close\r\n")
        elif minor == 0:
            lines.append(b"connection: keep-alive\r\n")
    lines.append(b"\r\n")
    return b"".join(lines)


def chunks_response(head: ResponseHead, minor: int) -> bool:
    """Whether the body behind ``encode_response(head, minor)`` goes in chunks."""
    return head.content_length < 0 and not head.bodiless and minor == 1


def encode_chunk(data: bytes) -> bytes:
    """Frame one piece of a chunked body. An empty piece would end it, so it becomes nothing."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def header(name: str, value: str) -> Header:
    """One header of our own making, safe to write.

    Raises:
        ValueError: the value holds a control character: somebody is writing two headers in one.
    """
    raw = value.encode("latin-1", "replace").strip(b" \t")
    if _FORBIDDEN_IN_VALUE.search(raw):
        raise ValueError(f"control character in the value of {name}")
    return name.lower().encode("ascii"), raw
