"""The operators' GETs: what is answered, what is refused, and how long we wait."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.testing

from ambient.engine.pages import MAX_HEADER_BYTES, Answer, answer, encode_answer, serve

ROUTES = {"/x": lambda: Answer(200, "hello\n")}


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /x HTTP/1.1\r\nHost: localhost:15000", 200),
        ("GET /x?a=b HTTP/1.0\r\nhost: 127.0.0.1", 200),
        ("GET /x HTTP/1.1\r\nHost: [::1]:15000", 200),
        ("GET /x HTTP/1.1\r\nHost: evil.example", 403),
        ("GET /x HTTP/1.1\r\nHost: 127.0.0.1.evil.example", 403),
        ("GET /x HTTP/1.1", 403),
        ("GET /../x HTTP/1.1\r\nHost: localhost", 404),
        ("POST /x HTTP/1.1\r\nHost: localhost", 405),
        ("GET /x HTTP/2.0\r\nHost: localhost", 400),
        ("\x16\x03\x01", 400),
    ],
)
def test_only_a_local_get_of_a_known_path_is_answered(head: str, status: int) -> None:
    """A browser's page can reach 127.0.0.1 under a name of its own."""
    assert answer(head.encode("latin-1"), ROUTES, local_only=True).status == status


def test_metrics_may_be_read_from_anywhere() -> None:
    """Prometheus comes from another node, under any name."""
    assert answer(b"GET /x HTTP/1.1\r\nHost: node-1:15020", ROUTES, local_only=False).status == 200


def test_an_answer_has_its_length_and_ends_the_connection() -> None:
    """Any client can read it."""
    assert encode_answer(Answer(418, "é")) == (
        b"HTTP/1.1 418 Unknown\r\ncontent-type: text/plain; charset=utf-8\r\n"
        b"content-length: 2\r\nconnection: close\r\n\r\n\xc3\xa9"
    )


async def ask(port: int, request: bytes) -> bytes:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(request)
        return b"".join([chunk async for chunk in stream])


def listening() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


async def test_over_a_real_socket() -> None:
    """A good request, a head without end, and a client that leaves in the middle."""
    sock = listening()
    port = sock.getsockname()[1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, sock, ROUTES)
        gone = await trio.open_tcp_stream("127.0.0.1", port)
        await gone.send_all(b"GET /x")
        await gone.aclose()

        good = await ask(port, b"GET /x HTTP/1.1\r\n\r\n")
        endless = await ask(port, b"GET /x HTTP/1.1\r\n" + b"a" * (MAX_HEADER_BYTES + 1))
        nursery.cancel_scope.cancel()

    assert good.endswith(b"\r\n\r\nhello\n")
    assert endless.startswith(b"HTTP/1.1 431 ")


async def test_a_slow_client_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may connect; nobody may stay."""
    monkeypatch.setattr("ambient.engine.pages.HEADER_SECONDS", 0.02)
    sock = listening()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, sock, ROUTES)
        with trio.fail_after(5):
            assert await ask(sock.getsockname()[1], b"GET /x") == b""
        nursery.cancel_scope.cancel()
