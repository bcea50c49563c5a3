"""One request carried from a client's connection to an upstream's, and its answer back.

Floor 2. Where a request goes is decided by its owner (``decide``); here are only bytes and their order:
back-pressure both ways, answers of our own when there is no upstream (502, 503, 504), and the one retry
that HTTP allows: a pooled connection turned out dead before it answered anything, and the request can be
sent again without harm (RFC 9110 section 9.2.2).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

from ambient.engine.http_client import ClientConnection, HttpPool
from ambient.engine.http_server import RequestSink, ServerConnection
from ambient.wire.http1_heads import LAST_CHUNK, RequestHead, ResponseHead, encode_chunk, encode_request

# What is kept of a request's body so that it can be sent again. Picked, not measured.
MAX_REPLAY_BYTES = 64 * 1024
# Dials that failed, or pooled connections that were dead, before the client is told.
MAX_ATTEMPTS = 3

_IDEMPOTENT = frozenset((b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"))


@dataclass(frozen=True, slots=True)
class Upstream:
    """Where one request goes.

    Attributes:
        key: The pool's key.
        extra: Header lines for the upstream, each ending in CRLF.
        target: Whatever the owner wants to find again in the record.
    """

    key: Hashable
    extra: bytes = b""
    target: Any = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The request goes nowhere: this is the answer. *flag* is Envoy's response flag."""

    status: int
    reason: str
    flag: str = "-"


Decide: TypeAlias = "Callable[[Forward], Upstream | Answer]"
OnRecord: TypeAlias = "Callable[[Forward], None]"


class Forwarder:
    """Makes a ``Forward`` for each request of an ``HttpServer``.

    Args:
        decide: Asked once per attempt.
        on_record: Called exactly once per request, when it is over.
    """

    __slots__ = ("_clock", "decide", "on_record", "pool")

    def __init__(
        self, clock: Callable[[], float], pool: HttpPool, decide: Decide, on_record: OnRecord
    ) -> None:
        self._clock = clock
        self.pool = pool
        self.decide = decide
        self.on_record = on_record

    def on_request(self, connection: ServerConnection, head: RequestHead) -> RequestSink:
        """For ``HttpServer(on_request=...)``."""
        forward = Forward(self, connection, head, self._clock())
        forward.start()
        return forward

    def now(self) -> float:
        """Seconds of the clock that durations are measured by."""
        return self._clock()


class Forward:
    """One request on its way: the client's sink and the upstream's at once, and then its own record.

    Attributes:
        connection: The client's connection; its ``context`` is the owner's.
        head: The request.
        upstream: Where it went last.
        status: What the client was told; 0 if nothing.
        flag: Envoy's response flag: ``-``, ``UF`` (dial failed), ``UC`` (upstream closed), ``DC`` (client
            gone), ``NR`` (no route), ``UO`` (overflow).
        error: In words.
    """

    __slots__ = (
        "_attempts", "_body_done", "_conn", "_over", "_owner", "_replay", "_replay_bytes", "_waiting",
        "bytes_received", "bytes_sent", "connection", "ended", "error", "flag", "head", "started", "status",
        "upstream",
    )  # fmt: skip

    def __init__(self, owner: Forwarder, connection: ServerConnection, head: RequestHead, now: float) -> None:
        self.connection = connection
        self.head = head
        self.upstream: Upstream | None = None
        self.status = 0
        self.flag = "-"
        self.error = ""
        self.started = self.ended = now
        self.bytes_received = self.bytes_sent = 0
        self._owner = owner
        self._conn: ClientConnection | None = None
        self._replay: list[bytes] | None = []  # framed pieces of the body; None: too much to send again
        self._replay_bytes = 0
        self._attempts = 0
        self._body_done = self._waiting = self._over = False

    @property
    def duration(self) -> float:
        """Seconds from the request's head to the end of the answer."""
        return self.ended - self.started

    # Towards the upstream ------------------------------------------------------------------

    def start(self) -> None:
        """Decide, and send the head on a pooled connection or on a new one."""
        self._attempts += 1
        decided = self._owner.decide(self)
        if isinstance(decided, Answer):
            self._answer(decided)
            return
        self.upstream = decided
        pool = self._owner.pool
        # A second attempt does not trust pooled connections: one that was dead is rarely alone.
        conn = pool.take(decided.key) if self._attempts == 1 else None
        if conn is not None:
            self._send(conn)
            return
        self._waiting = True
        if self.head.has_body and not self._body_done:
            self.connection.pause_body()
        pool.open(decided.key, self._opened)

    def _opened(self, conn: ClientConnection | Exception) -> None:
        self._waiting = False
        if isinstance(conn, Exception):
            if not self._over:
                self._dial_failed(conn)
        elif self._over:
            self._owner.pool.give_back(conn)
        else:
            self._send(conn)
            if self.head.has_body and not self._body_done:
                self.connection.resume_body()

    def _send(self, conn: ClientConnection) -> None:
        self._conn = conn
        upstream = self.upstream
        assert upstream is not None
        conn.begin(self, self.head.method, encode_request(self.head, upstream.extra))
        for piece in self._replay or ():
            conn.write(piece)
        if self._body_done:
            conn.end()

    def _dial_failed(self, exc: Exception) -> None:
        """Nothing was sent, so any request may try again; the next decision may know better."""
        if self._attempts < MAX_ATTEMPTS:
            self.start()
            return
        timed_out = isinstance(exc, TimeoutError)
        self._answer(Answer(504 if timed_out else 503, f"upstream connect failed: {exc}", "UF"))

    # The client's side ---------------------------------------------------------------------

    def body_received(self, data: bytes) -> None:
        """A piece of the request's body: on it goes."""
        self.bytes_received += len(data)
        piece = encode_chunk(data) if self.head.chunked else data
        self._remember(piece)
        conn = self._conn
        if conn is not None:
            conn.write(piece)
            if not conn.writable:
                self.connection.pause_body()

    def body_ended(self) -> None:
        """The request is complete."""
        self._body_done = True
        if self.head.chunked:
            self._remember(LAST_CHUNK)
        conn = self._conn
        if conn is not None:
            if self.head.chunked:
                conn.write(LAST_CHUNK)
            conn.end()

    def client_writable(self) -> None:
        """The client has room again."""
        if self._conn is not None:
            self._conn.resume()

    def client_gone(self, reason: str) -> None:
        """The client's connection is over before the exchange was."""
        if self._over:
            return
        if self._conn is not None:
            self._conn.abort()
        self._finish(self.status, "DC", reason)

    def _remember(self, piece: bytes) -> None:
        if self._replay is None:
            return
        self._replay_bytes += len(piece)
        if self._replay_bytes > MAX_REPLAY_BYTES and self._conn is not None:
            self._replay = None
        else:
            self._replay.append(piece)

    # The upstream's side -------------------------------------------------------------------

    def response_head(self, head: ResponseHead) -> None:
        """The answer begins."""
        self.status = head.status
        self._replay = None
        self.connection.send_head(head)

    def response_body(self, data: bytes) -> None:
        """A piece of the answer's body: back it goes."""
        self.bytes_sent += len(data)
        connection = self.connection
        connection.send_body(data)
        if not connection.writable and self._conn is not None:
            self._conn.pause()

    def response_ended(self) -> None:
        """The answer is complete."""
        conn, self._conn = self._conn, None
        if conn is not None and not self._body_done:
            conn.abort()  # the rest of the request is not wanted, so the connection is lost
        self._finish(self.status, "-", "")
        self.connection.send_end()

    def upstream_writable(self) -> None:
        """The upstream has room again."""
        self.connection.resume_body()

    def upstream_lost(self, reason: str) -> None:
        """The upstream's connection is over before its answer was."""
        conn, self._conn = self._conn, None
        if self.status:
            self._finish(self.status, "UC", reason)
            self.connection.abort()
        elif conn is not None and conn.reused and self._may_repeat():
            self.start()
        else:
            self._answer(Answer(502, reason, "UC"))

    def _may_repeat(self) -> bool:
        return self._attempts < MAX_ATTEMPTS and self._replay is not None and self.head.method in _IDEMPOTENT

    # The end -------------------------------------------------------------------------------

    def _answer(self, answer: Answer) -> None:
        self._finish(answer.status, answer.flag, answer.reason)
        self.connection.answer(answer.status, answer.reason + "\n")

    def _finish(self, status: int, flag: str, error: str) -> None:
        self._over = True
        self.status = status
        self.flag = flag
        self.error = error
        self.ended = self._owner.now()
        self._owner.on_record(self)
