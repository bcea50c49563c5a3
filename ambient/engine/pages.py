"""The few GETs of an operator: metrics, readiness, dumps. HTTP/1.1, one answer a connection.

Floor 2.

Under trio and not in the reactor, because nobody measures these; bounded in size, time and number,
because 15020 and 15021 can be reached by anybody.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import trio

# ztunnel's figures: header read timeout and buffer.
HEADER_SECONDS = 2.0
MAX_HEADER_BYTES = 8 * 1024
# Answers may be large (a dump of 10,000 workloads is 8 MB) and the reader slow.
ANSWER_SECONDS = 30.0
# Connections at once, each port; the rest wait in the backlog. Picked, not measured.
MAX_CONNECTIONS = 32

TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a body."""

    status: int
    body: str
    content_type: str = TEXT


Routes: TypeAlias = Mapping[str, Callable[[], Answer]]

_LOCAL_HOST = re.compile(r"(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d{1,5})?")
_REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed"}
_REASONS |= {431: "Request Header Fields Too Large", 500: "Internal Server Error"}


def answer(head: bytes, routes: Routes, local_only: bool) -> Answer:
    """What the request with this head gets. Pure but for the route that it calls.

    Args:
        local_only: Refuse a ``Host`` that is not this machine's loopback: a page in a browser must not
            read us by pointing a name of its own at 127.0.0.1.
    """
    lines = head.decode("latin-1").split("\r\n")
    match lines[0].split(" "):
        case [method, target, "HTTP/1.1" | "HTTP/1.0"]:
            path = target.partition("?")[0]
        case _:
            return Answer(400, "not an HTTP/1.1 request\n")
    if local_only and not _is_local(_header(lines[1:], "host")):
        return Answer(403, "Host must be localhost or a loopback address\n")
    if path not in routes:
        return Answer(404, "not found\n")
    if method != "GET":
        return Answer(405, "only GET is understood here\n")
    return routes[path]()


def encode_answer(what: Answer) -> bytes:
    """The bytes of a response that ends the connection."""
    body = what.body.encode()
    head = (
        f"HTTP/1.1 {what.status} {_REASONS.get(what.status, 'Unknown')}\r\n"
        f"content-type: {what.content_type}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


async def serve(sock: socket.socket, routes: Routes, *, local_only: bool = False) -> None:
    """Answer on the listening *sock*, which becomes ours, until cancelled."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    limit = trio.CapacityLimiter(MAX_CONNECTIONS)
    async with listener, trio.open_nursery() as nursery:
        while True:
            async with limit:
                pass  # Accept only when somebody could serve it.
            try:
                stream = await listener.accept()
            except OSError:
                # Out of descriptors: others need them more.
                await trio.sleep(0.1)
                continue
            nursery.start_soon(_serve_one, stream, routes, local_only, limit)


async def _serve_one(
    stream: trio.SocketStream, routes: Routes, local_only: bool, limit: trio.CapacityLimiter
) -> None:
    async with limit, stream:
        try:
            with trio.move_on_after(HEADER_SECONDS) as reading:
                head = await _read_head(stream)
            if reading.cancelled_caught:
                return
            what = answer(head, routes, local_only) if head else Answer(431, "header too large\n")
            with trio.move_on_after(ANSWER_SECONDS):
                await stream.send_all(encode_answer(what))
                await stream.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # It went away; there is nobody to tell.


async def _read_head(stream: trio.SocketStream) -> bytes:
    """The request's head, or b"" if it is over the bound."""
    data = bytearray()
    while (end := data.find(b"\r\n\r\n")) < 0:
        if len(data) > MAX_HEADER_BYTES:
            return b""
        more = await stream.receive_some(4096)
        if not more:
            raise trio.BrokenResourceError("closed before the end of the head")
        data += more
    return bytes(data[:end])


def _header(lines: list[str], name: str) -> str:
    for line in lines:
        found, _, value = line.partition(":")
        if found.lower() == name:
            return value.strip()
    return ""


def _is_local(host: str) -> bool:
    return _LOCAL_HOST.fullmatch(host) is not None
