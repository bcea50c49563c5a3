"""HTTP/1.1 without I/O: bytes in, heads and body pieces out.

Floor 1. llhttp (through ``httptools``) splits the bytes, ``http1_rules`` refuses what it lets through, and
what belongs to one hop only is forgotten here.

    request bytes  --RequestParser-->  RequestHead, bytes..., END   --encode_request-->   bytes
    response bytes --ResponseParser--> ResponseHead, bytes..., END  --encode_response-->  bytes

A broken rule is the event ``Refused``, always the last one, and not an exception: requests that came whole
before it in the same read must still be answered (RFC 9112 section 9.3.2).
"""

from __future__ import annotations

from typing import Any

import httptools

from ambient.wire.http1_heads import (
    END,
    Header,
    Refused,
    RequestEvent,
    RequestHead,
    ResponseEvent,
    ResponseHead,
)
from ambient.wire.http1_rules import (
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_INFORMATIONAL,
    ONCE,
    SPECIAL,
    Refusal,
    end_to_end,
    expects_continue,
    framing,
    origin_target,
)


class _Parser:
    """What both directions share: feeding llhttp, bounds, and ending with ``Refused``."""

    __slots__ = (
        "_begun", "_body", "_broken", "_events", "_kept", "_parser", "_quiet", "_special", "_trailers"
    )  # fmt: skip

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self._events: list[Any] = []
        self._begun = False  # between the first byte of a message and its END
        self._body = False  # between a head and its END
        self._broken = False
        self._quiet = 0  # bytes since something was understood
        self._forget()

    @property
    def begun(self) -> bool:
        """Whether a message has begun that is not complete."""
        return self._begun

    def _forget(self) -> None:
        """Start a new message."""
        self._kept: list[Header] = []
        self._special: dict[bytes, bytes] = {}
        self._trailers = 0
        self._begun = self._body = False

    def _feed(self, data: bytes | bytearray | memoryview) -> None:
        """Parse *data* into ``_events``; a refusal becomes the last event."""
        self._quiet += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as exc:
            refusal = exc.__context__
            if not isinstance(refusal, Refusal):
                raise
            self._refuse(refusal.refused)
        except httptools.HttpParserError as exc:
            self._refuse(Refused(400, str(exc)))
        if self._quiet > MAX_HEAD_BYTES:
            self._check_quiet()

    def _check_quiet(self) -> None:
        """A peer that talks long and says nothing (an endless chunk extension) is refused."""
        if not self._events:
            self._refuse(Refused(431, f"{self._quiet} bytes without a head, a body or an end"))
        self._quiet = 0

    def _refuse(self, refused: Refused) -> None:
        self._broken = True
        self._events.append(refused)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by llhttp for each header, and for each trailer.

        The hottest line of the house: bounds are checked once, in ``_check_size``; until then a head is
        bounded by one read and by ``_check_quiet``.
        """
        name = name.lower()
        if self._body or name in SPECIAL:
            self._unusual(name, value.strip(b" \t"))
        else:
            self._kept.append((name, value.strip(b" \t")))

    def _unusual(self, name: bytes, value: bytes) -> None:
        """A header that frames the message, or a trailer, which is counted and dropped."""
        if self._body:
            self._trailers += 1
            if self._trailers > MAX_HEADERS:
                raise Refusal(431, "trailers over their bound")
        elif name not in self._special:
            self._special[name] = value
        elif name in ONCE:
            raise Refusal(400, f"two {name.decode()} headers")
        else:
            self._special[name] += b", " + value

    def _check_size(self, target: bytes = b"") -> None:
        """At the end of a head: was it within its bounds?"""
        if len(self._kept) + len(self._special) > MAX_HEADERS:
            raise Refusal(431, f"over {MAX_HEADERS} headers")
        if self._quiet > MAX_HEAD_BYTES:  # else the whole read was small
            fields = (*self._kept, *self._special.items())
            if len(target) + sum(len(name) + len(value) + 4 for name, value in fields) > MAX_HEAD_BYTES:
                raise Refusal(431, "header block over its bound")

    def on_body(self, data: bytes) -> None:
        """Called by llhttp for each piece of body."""
        self._quiet = 0
        self._events.append(data)

    def on_message_complete(self) -> None:
        """Called by llhttp when the body, if any, is over."""
        self._quiet = 0
        self._events.append(END)
        self._forget()


class RequestParser(_Parser):
    """The server's side: turns any split of a byte stream into requests.

    One read may hold several pipelined requests; the caller answers one at a time and stops reading while it
    has events in hand, so the queue is bounded by one read.
    """

    __slots__ = ("_last", "_target")

    def __init__(self) -> None:
        super().__init__(httptools.HttpRequestParser(self))
        self._target = b""
        self._last = False

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[RequestEvent]:
        """Return the events that *data* completes; nothing once refused or after a last request."""
        if self._broken or (self._last and not self._body):
            return []
        events: list[Any] = []
        self._events = events
        try:
            self._feed(data)
        except httptools.HttpParserUpgrade as pause:
            self._go_on(memoryview(data)[pause.args[0] :])
        return events

    def receive_eof(self) -> list[RequestEvent]:
        """The client will send no more: ``Refused`` if it stopped inside a request."""
        if self._broken or not self._begun:
            return []
        self._broken = True
        return [Refused(400, "end of connection inside a request")]

    def _go_on(self, rest: memoryview) -> None:
        """llhttp stops behind a request that asks to upgrade; we do not, so what follows is HTTP."""
        while rest and not self._last:
            self._parser = httptools.HttpRequestParser(self)
            try:
                self._feed(rest)
                return
            except httptools.HttpParserUpgrade as pause:
                rest = rest[pause.args[0] :]
        self._parser = httptools.HttpRequestParser(self)

    def _refuse(self, refused: Refused) -> None:
        # llhttp objects to bytes behind a request that said ``close``; they are nobody's, and ignored.
        if self._body or not self._last:
            super()._refuse(refused)

    def on_message_begin(self) -> None:
        """Called by llhttp at the first byte of a request."""
        self._begun = True

    def on_url(self, data: bytes) -> None:
        """Called by llhttp with each piece of the request target."""
        self._target += data
        if len(self._target) > MAX_HEAD_BYTES:
            raise Refusal(414, "request target over its bound")

    def on_headers_complete(self) -> None:
        """Called by llhttp at the blank line: judge the head as a whole."""
        parser, special = self._parser, self._special
        version = parser.get_http_version()
        if version != "1.1" and version != "1.0":
            raise Refusal(505, f"HTTP/{version}")
        self._check_size(self._target)
        minor = 1 if version == "1.1" else 0
        method = parser.get_method()
        target, host = origin_target(method, self._target, special.get(b"host"), minor)
        length, chunked = framing(special, minor)
        head = RequestHead(
            method,
            target,
            host,
            end_to_end(self._kept, special),
            length,
            chunked,
            minor,
            parser.should_keep_alive(),
        )
        if b"expect" in special:
            head.expects_continue = expects_continue(special[b"expect"], minor)
        if b"upgrade" in special:
            head.upgrade = special[b"upgrade"]
        self._last = not head.keep_alive
        self._target = b""
        self._body = True
        self._quiet = 0
        self._events.append(head)


class ResponseParser(_Parser):
    """The client's side: one response for each ``expect``, in order, one at a time."""

    __slots__ = ("_expecting", "_head_only", "_informational", "_status", "_until_close")

    _fault = 502

    def __init__(self) -> None:
        super().__init__(httptools.HttpResponseParser(self))
        self._expecting = False
        self._head_only = False
        self._until_close = False
        self._informational = 0
        self._status = 0

    @property
    def idle(self) -> bool:
        """Whether no response is outstanding and none was broken: the connection can be used again."""
        return not (self._expecting or self._broken)

    def expect(self, method: bytes) -> None:
        """A request with *method* was sent; the next response belongs to it."""
        self._expecting = True
        self._head_only = method == b"HEAD"
        self._informational = 0

    def receive_data(self, data: bytes | bytearray | memoryview) -> list[ResponseEvent]:
        """Return the events that *data* completes. Bytes that nobody asked for are ``Refused``."""
        if self._broken:
            return []
        events: list[Any] = []
        self._events = events
        if self._expecting:
            self._feed(data)
        else:
            self._refuse(Refused(502, "response without a request"))
        return events

    def receive_eof(self) -> list[ResponseEvent]:
        """The origin closed: ``END`` if that is how the body ends, ``Refused`` if it stopped inside."""
        if not self._expecting or self._broken:
            return []
        if self._until_close:
            self._expecting = self._until_close = False
            return [END]
        self._broken = True
        return [Refused(502, "end of connection inside a response")]

    def _refuse(self, refused: Refused) -> None:
        # Whatever the origin did wrong, the client is told one thing.
        super()._refuse(Refused(502, refused.reason))

    def on_message_begin(self) -> None:
        """Called by llhttp at the first byte of a response."""
        if not self._expecting:
            raise Refusal(502, "more than one response to a request")
        self._begun = True

    def on_headers_complete(self) -> None:
        """Called by llhttp at the blank line: judge the head as a whole."""
        parser = self._parser
        self._status = status = parser.get_status_code()
        version = parser.get_http_version()
        if (version != "1.1" and version != "1.0") or not 100 <= status <= 599 or status == 101:
            raise Refusal(502, f"HTTP/{version} status {status}")
        self._check_size()
        minor = 1 if version == "1.1" else 0
        length, chunked = framing(self._special, minor)
        head = ResponseHead(status, end_to_end(self._kept, self._special), length, chunked, minor=minor)
        if status < 200:
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise Refusal(502, "too many informational responses")
        head.bodiless = self._head_only or status < 200 or status == 204 or status == 304
        self._quiet = 0
        self._body = True
        self._events.append(head)
        if self._head_only and status >= 200:
            self._end_without_body(head)
            return
        self._until_close = head.until_close
        head.keep_alive = not head.until_close and parser.should_keep_alive()

    def _end_without_body(self, head: ResponseHead) -> None:
        """The response to HEAD is over; llhttp would wait for the body that its headers announce.

        What might follow in chunks would go unseen, so such a connection is not used again; any other
        byte behind the head comes to ``on_body``.
        """
        tokens = self._special.get(b"connection", b"").lower()
        asked = b"close" not in tokens and (head.minor == 1 or b"keep-alive" in tokens)
        head.keep_alive = asked and not head.chunked
        self._expecting = False
        self._parser = httptools.HttpResponseParser(self)
        super().on_message_complete()

    def on_body(self, data: bytes) -> None:
        """Called by llhttp for each piece of body."""
        if not self._expecting:
            raise Refusal(502, "body behind a response to HEAD")
        self._quiet = 0
        self._events.append(data)

    def on_message_complete(self) -> None:
        """Called by llhttp when a response is over; an informational one does not count."""
        if self._status < 200:
            self._forget()
        elif self._expecting:  # else: a response to HEAD, which ended at its blank line
            self._expecting = False
            super().on_message_complete()
