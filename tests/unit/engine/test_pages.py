"""The operators' requests: what is answered, what is refused, and how long we wait."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ambient.engine import pages
from ambient.engine.pages import (
    MAX_BODY_BYTES,
    MAX_HEADER_BYTES,
    Answer,
    Found,
    Query,
    encode_head,
    find,
    serve,
)


def hello(query: Query) -> Answer:
    return Answer(200, "hello\n")


async def later(query: Query) -> Answer:
    await trio.lowlevel.checkpoint()
    return Answer(200, b"later\n")


ROUTES = {"/x": {"GET": hello}, "/y": {"GET": later, "POST": hello}}


def status(head: str, *, local_only: bool = True) -> int:
    found = find(head.encode("latin-1"), ROUTES, local_only)
    return found.status if isinstance(found, Answer) else 200


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("GET /x HTTP/1.1\r\nHost: localhost:15000", 200),
        ("GET /x?a=b HTTP/1.0\r\nhost: 127.0.0.1", 200),
        ("GET /x HTTP/1.1\r\nHost: [::1]:15000", 200),
        ("POST /y HTTP/1.1\r\nHost: localhost", 200),
        ("GET /x HTTP/1.1\r\nHost: localhost\r\nSec-Fetch-Site: none", 200),
        ("GET http://localhost/x HTTP/1.1\r\nHost: localhost", 400),
        ("GET /x HTTP/2.0\r\nHost: localhost", 400),
        ("GET  /x HTTP/1.1\r\nHost: localhost", 400),
        ("\x16\x03\x01", 400),
        ("GET /x?a HTTP/1.1\r\nHost: localhost", 400),
        ("GET /x?a=1&a=2 HTTP/1.1\r\nHost: localhost", 400),
        ("POST /x HTTP/1.1\r\nHost: localhost", 405),
    ],
)
def test_only_a_plain_request_for_a_known_path_is_answered(head: str, expected: int) -> None:
    """Nothing is guessed."""
    assert status(head) == expected


def test_metrics_may_be_read_from_anywhere() -> None:
    """Prometheus comes from another node, under any name."""
    assert status("GET /x HTTP/1.1\r\nHost: node-1:15020", local_only=False) == 200


def test_a_query_is_read_with_its_escapes() -> None:
    """curl -G --data-urlencode makes these."""
    found = find(b"GET /x?level=access%3Adebug%2Cinfo&b=c+d&e= HTTP/1.1\r\nHost: localhost", ROUTES, True)

    assert isinstance(found, Found)
    assert found.query == {"level": "access:debug,info", "b": "c d", "e": ""}


def test_a_refused_method_is_told_which_ones_there_are() -> None:
    """RFC 9110 section 15.5.6."""
    found = find(b"PUT /y HTTP/1.1\r\nHost: localhost", ROUTES, True)

    assert isinstance(found, Answer)
    assert b"allow: GET, POST\r\n" in encode_head(found, 0)


def test_an_answer_has_its_length_and_ends_the_connection() -> None:
    """Any client can read it."""
    head = encode_head(Answer(418, "é"), 2)

    assert head.startswith(b"HTTP/1.1 418 Unknown\r\ncontent-type: text/plain; charset=utf-8\r\n")
    assert b"content-length: 2\r\n" in head
    assert head.endswith(b"connection: close\r\n\r\n")


@given(st.binary(max_size=400))
def test_no_head_raises(head: bytes) -> None:
    """Law: whatever comes is answered or refused; only a local GET or POST is answered."""
    found = find(head, ROUTES, True)
    assert isinstance(found, Answer | Found)
    if isinstance(found, Answer):
        assert 400 <= found.status < 500


async def ask(port: int, request: bytes) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(request)
        return b"".join([chunk async for chunk in stream])


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    sock = socket.create_server(("127.0.0.1", 0), backlog=512)
    sock.setblocking(False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, sock, ROUTES)
        yield sock.getsockname()[1]
        nursery.cancel_scope.cancel()


async def test_over_a_real_socket() -> None:
    """Good requests, a head without end, bodies, and a client that leaves in the middle."""
    async with serving() as port:
        gone = await trio.open_tcp_stream("127.0.0.1", port)
        await gone.send_all(b"GET /x")
        await gone.aclose()

        good = await ask(port, b"GET /x HTTP/1.1\r\n\r\n")
        late = await ask(port, b"GET /y HTTP/1.1\r\n\r\n")
        endless = await ask(port, b"GET /x HTTP/1.1\r\n" + b"a" * (MAX_HEADER_BYTES + 1))
        body = b"a" * 10_000
        posted = await ask(port, b"POST /y HTTP/1.1\r\nContent-Length: 10000\r\n\r\n" + body)
        large = await ask(port, b"POST /y HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1))
        chunked = await ask(port, b"POST /y HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")

    assert good.endswith(b"\r\n\r\nhello\n")
    assert late.endswith(b"\r\n\r\nlater\n")
    assert endless.startswith(b"HTTP/1.1 431 ")
    assert posted.startswith(b"HTTP/1.1 200 ")
    assert large.startswith(b"HTTP/1.1 413 ")
    assert chunked.startswith(b"HTTP/1.1 413 ")


async def test_a_slow_client_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may connect; nobody may stay."""
    monkeypatch.setattr(pages, "HEADER_SECONDS", 0.02)
    async with serving() as port:
        with trio.fail_after(5):
            assert await ask(port, b"GET /x") == b""
