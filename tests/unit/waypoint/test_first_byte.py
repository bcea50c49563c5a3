"""Telling TLS, plaintext and silence apart without taking a byte."""

from __future__ import annotations

import socket
import time

import pytest

from ambient.engine.reactor import Reactor
from waypoint.first_byte import First, FirstByte


@pytest.mark.parametrize(
    ("sent", "expected"),
    [(b"\x16\x03\x01", First.TLS), (b"GET /", First.PLAIN), (None, First.SILENCE), (b"", First.CLOSED)],
    ids=["tls", "plain", "silence", "closed"],
)
@pytest.mark.parametrize("late", [False, True], ids=["there", "later"])
def test_first_byte_is_seen_and_left(sent: bytes | None, expected: First, late: bool) -> None:
    """Whoever takes over reads everything, from the first byte."""
    reactor = Reactor()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    seen: list[First] = []

    def send() -> None:
        if sent:
            theirs.send(sent)
        elif sent is not None:
            theirs.close()

    if not late:
        send()
    FirstByte(reactor, ours, seen.append, 0.02)
    if late:
        send()
    deadline = time.monotonic() + 5
    while not seen and time.monotonic() < deadline:
        reactor.run_once(0.05)

    assert seen == [expected]
    if sent:
        assert ours.recv(100) == sent
    ours.close()
    theirs.close()
    reactor.close()


def test_reset_connection_is_closed() -> None:
    """A client that is gone before it said a word."""
    reactor = Reactor()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _address = listener.accept()
    ours.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    theirs.close()
    seen: list[First] = []

    FirstByte(reactor, ours, seen.append)

    assert seen == [First.CLOSED]
    ours.close()
    reactor.close()
