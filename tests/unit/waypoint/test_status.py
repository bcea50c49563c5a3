"""The pages on 15020 and 15021."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from ambient.engine.netns import listen_in
from ambient.engine.reactor import Reactor
from waypoint.status import Status


class Page:
    """A status server on a loopback port, and its one client."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        sock = listen_in(None, 0, host="127.0.0.1")
        self.client = socket.create_connection(sock.getsockname())
        self.client.setblocking(False)
        self.status = Status(self.reactor, sock, {"/healthz/ready": lambda: (503, "not ready\n")})

    def ask(self, request: bytes) -> bytes:
        self.client.send(request)
        data, deadline = b"", time.monotonic() + 5
        while not data and time.monotonic() < deadline:
            self.reactor.run_once(0.01)
            try:
                data = self.client.recv(65536)
            except BlockingIOError:
                continue
        return data


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page()
    yield made
    made.status.close()
    made.client.close()
    made.reactor.run_once(0)
    made.reactor.close()


@pytest.mark.parametrize(
    ("request_line", "expected"),
    [
        (b"GET /healthz/ready?x=y", b"503"),
        (b"HEAD /healthz/ready", b"503"),
        (b"DELETE /healthz/ready", b"405"),
        (b"GET /config_dump", b"404"),
    ],
)
def test_pages_are_read_only_and_few(page: Page, request_line: bytes, expected: bytes) -> None:
    """These ports can be reached by anybody."""
    answer = page.ask(request_line + b" HTTP/1.1\r\nHost: a\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 " + expected)
    assert answer.endswith(b"not ready\n") is (request_line.startswith(b"GET /healthz"))
