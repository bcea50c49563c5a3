"""What an operator may ask over HTTP/1.1: metrics, readiness, dumps, levels. One answer a connection.

Floor 2.

Under trio and not in the reactor, because nobody measures these; bounded in size, time and number,
because 15020 and 15021 can be reached by anybody. ``answer`` decides; the rest is plumbing.
"""

from __future__ import annotations

import inspect
import os
import re
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import trio

# ztunnel's figures: header read timeout and buffer.
HEADER_SECONDS = 2.0
MAX_HEADER_BYTES = 8 * 1024
# A path and its query; ours are under 100 bytes. Picked, not measured.
MAX_TARGET_BYTES = 2 * 1024
# Nothing here has a body; what comes with one is read away up to this, so that its sender hears the answer.
MAX_BODY_BYTES = 64 * 1024
# Answers may be large (a dump of 10,000 workloads is 8 MB) and the reader slow.
ANSWER_SECONDS = 30.0
# Connections at once, each port. An answer of one may be megabytes. Picked, not measured.
MAX_CONNECTIONS = 8
# When others wait, the oldest connection that has had this long must make room: a thousand slow readers
# cannot keep the one out who reads. Picked, not measured.
PATIENCE_SECONDS = 2.0
# After a refused accept (out of descriptors): others need them more.
ACCEPT_PAUSE_SECONDS = 0.1

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body.

    Attributes:
        body: Bytes may be shared by many answers at once.
        allow: The methods that would have been understood, for a 405.
    """

    status: int
    body: str | bytes
    content_type: str = TEXT
    allow: tuple[str, ...] = ()


Query: TypeAlias = Mapping[str, str]
Route: TypeAlias = Callable[[Query], Answer | Awaitable[Answer]]
# Path -> method -> what answers it.
Routes: TypeAlias = Mapping[str, Mapping[str, Route]]


@dataclass(frozen=True, slots=True)
class Found:
    """Who answers a request."""

    route: Route
    query: Query = field(default_factory=lambda: MappingProxyType({}))


_LOCAL_HOST = re.compile(r"(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d{1,5})?")
_LENGTH = re.compile(r"[0-9]{1,9}")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}
_REASONS |= {409: "Conflict", 413: "Content Too Large", 414: "URI Too Long"}
_REASONS |= {431: "Request Header Fields Too Large", 500: "Internal Server Error"}


def find(head: bytes, routes: Routes, local_only: bool) -> Found | Answer:
    """Who answers the request with this head, or why nobody does. Pure.

    Args:
        local_only: Refuse a ``Host`` that is not this machine's loopback, and whatever a browser's page
            may send: a page must not read us by pointing a name of its own at 127.0.0.1, nor stop us by
            posting a form.
    """
    lines = head.decode("latin-1").split("\r\n")
    match lines[0].split(" "):
        case [method, target, "HTTP/1.1" | "HTTP/1.0"] if target.startswith("/"):
            path, _, query = target.partition("?")
        case _:
            return Answer(400, "not an HTTP/1.1 request\n")
    if len(target) > MAX_TARGET_BYTES:
        return Answer(414, f"a target is at most {MAX_TARGET_BYTES} bytes\n")
    if local_only and (refusal := _foreign(lines[1:])):
        return Answer(403, refusal)
    if path not in routes:
        return Answer(404, "not found\n")
    found = routes[path].get(method)
    if found is None:
        methods = tuple(routes[path])
        return Answer(405, f"only {' and '.join(methods)} is understood here\n", allow=methods)
    return _with_query(found, query)


def _with_query(route: Route, query: str) -> Found | Answer:
    parts = [part.partition("=") for part in query.split("&")] if query else []
    pairs = [(_decoded(name), _decoded(value)) for name, _, value in parts]
    if not all(sign for _, sign, _ in parts):
        return Answer(400, "the query is not name=value\n")
    if len(dict(pairs)) != len(pairs):
        return Answer(400, "a name stands twice in the query\n")
    return Found(route, dict(pairs))


def _decoded(text: str) -> str:
    """Without the escapes of a form; a broken one stays as it is, and then means nothing to anybody."""
    return _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text.replace("+", " "))


def _foreign(lines: list[str]) -> str:
    """Why the request may come from a browser's page, or ""."""
    hosts = _values(lines, "host")
    if len(hosts) != 1 or not _is_local(hosts[0]):
        return "Host must be localhost or a loopback address\n"
    if _values(lines, "origin"):
        # Even one on localhost: another program's page is no operator.
        return "requests of browsers' pages (Origin) are refused\n"
    if any(value not in ("none", "same-origin") for value in _values(lines, "sec-fetch-site")):
        return "requests of browsers' pages (Sec-Fetch-Site) are refused\n"
    return ""


def encode_head(what: Answer, length: int) -> bytes:
    """The head of a response that ends the connection."""
    allow = f"allow: {', '.join(what.allow)}\r\n" if what.allow else ""
    return (
        f"HTTP/1.1 {what.status} {_REASONS.get(what.status, 'Unknown')}\r\n"
        f"content-type: {what.content_type}\r\ncontent-length: {length}\r\n{allow}"
        # A page that guesses the address shall not make a script of what it reads.
        "x-content-type-options: nosniff\r\nconnection: close\r\n\r\n"
    ).encode()


class Door:
    """One listening port: who is inside, and who must make room.

    Args:
        routes: What is answered.
        local_only: See ``find``.
    """

    def __init__(self, routes: Routes, *, local_only: bool = False) -> None:
        self._routes = routes
        self._local_only = local_only
        # Scopes of those inside, oldest first, with the time at which they came.
        self._inside: dict[trio.CancelScope, float] = {}
        self._left = trio.Event()

    async def serve(self, sock: socket.socket) -> None:
        """Answer on the listening *sock*, which becomes ours, until cancelled."""
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with listener, trio.open_nursery() as nursery:
            while True:
                await self._room()
                try:
                    stream = await listener.accept()
                except OSError:
                    await trio.sleep(ACCEPT_PAUSE_SECONDS)
                    continue
                scope = trio.CancelScope()
                self._inside[scope] = trio.current_time()
                nursery.start_soon(self._serve_one, stream, scope)

    async def _room(self) -> None:
        """Return when one more may come in."""
        while len(self._inside) >= MAX_CONNECTIONS:
            oldest = next(iter(self._inside))
            with trio.move_on_at(self._inside[oldest] + PATIENCE_SECONDS):
                await self._left.wait()
                continue
            oldest.cancel()
            await self._left.wait()

    async def _serve_one(self, stream: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            with scope:
                async with stream:
                    await self._exchange(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # It went away; there is nobody to tell.
        finally:
            del self._inside[scope]
            self._left.set()
            self._left = trio.Event()

    async def _exchange(self, stream: trio.SocketStream) -> None:
        if stream.socket.family == socket.AF_UNIX and not _is_ours(stream.socket):
            return
        with trio.move_on_after(HEADER_SECONDS) as reading:
            head, rest = await _read_head(stream)
            too_large = await _skip_body(stream, head, rest)
        if reading.cancelled_caught:
            return
        found = find(head, self._routes, self._local_only) if head else Answer(431, "header too large\n")
        if too_large:
            found = Answer(413, f"a body is at most {MAX_BODY_BYTES} bytes, and of no use here\n")
        what = found if isinstance(found, Answer) else await _called(found)
        body = what.body.encode() if isinstance(what.body, str) else what.body
        with trio.move_on_after(ANSWER_SECONDS):
            await stream.send_all(encode_head(what, len(body)))
            await stream.send_all(body)
            await stream.send_eof()


async def serve(sock: socket.socket, routes: Routes, *, local_only: bool = False) -> None:
    """Answer on the listening *sock*, which becomes ours, until cancelled."""
    await Door(routes, local_only=local_only).serve(sock)


async def _called(found: Found) -> Answer:
    what = found.route(found.query)
    return await what if inspect.isawaitable(what) else what


def _is_ours(sock: trio.socket.SocketType) -> bool:
    """Whether the process at the other end of a unix socket belongs to root or to us."""
    _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.geteuid())


async def _read_head(stream: trio.SocketStream) -> tuple[bytes, int]:
    """The request's head (b"" if it is over the bound), and how much of its body came along."""
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > MAX_HEADER_BYTES:
            return b"", 0
        more = await stream.receive_some(4096)
        if not more:
            raise trio.BrokenResourceError("closed before the end of the head")
        data += more
    if end > MAX_HEADER_BYTES:
        return b"", 0
    return bytes(data[:end]), len(data) - end - 4


async def _skip_body(stream: trio.SocketStream, head: bytes, received: int) -> bool:
    """Read the body away; True if it is over the bound, or its length is not said in plain figures."""
    lines = head.decode("latin-1").split("\r\n")[1:]
    lengths = _values(lines, "content-length")
    if _values(lines, "transfer-encoding") or len(lengths) > 1:
        return True
    if not lengths:
        return False
    if not _LENGTH.fullmatch(lengths[0]) or int(lengths[0]) > MAX_BODY_BYTES:
        return True
    while received < int(lengths[0]):
        more = await stream.receive_some(4096)
        if not more:
            break
        received += len(more)
    return False


def _values(lines: list[str], name: str) -> list[str]:
    pairs = (line.partition(":") for line in lines)
    return [value.strip() for found, _, value in pairs if found.lower() == name]


def _is_local(host: str) -> bool:
    return _LOCAL_HOST.fullmatch(host) is not None
