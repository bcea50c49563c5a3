"""How a relay ends that its process did not end: whoever was in the middle of something must hear of it."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

RELAY = """
import socket, sys
from ambient.engine.channel import SocketChannel
from ambient.engine.reactor import Reactor
from ambient.engine.relay import relay

reactor = Reactor()
near, far = (SocketChannel(reactor, socket.socket(fileno=int(fd))) for fd in sys.argv[1:])
relay(reactor, near, far, lambda counts: reactor.stop())
reactor.run()
"""


@dataclass
class Relayed:
    """The applications' ends of a connection that another process relays."""

    client: socket.socket
    server: socket.socket
    process: subprocess.Popen[bytes]


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    theirs.settimeout(20)
    ours.setblocking(False)
    return theirs, ours


@pytest.fixture
def relayed() -> Iterator[Relayed]:
    client, near = tcp_pair()
    server, far = tcp_pair()
    fds = near.fileno(), far.fileno()
    process = subprocess.Popen([sys.executable, "-c", RELAY, *map(str, fds)], pass_fds=fds)
    near.close()
    far.close()
    with client, server, process:
        try:
            yield Relayed(client, server, process)
        finally:
            process.kill()


def test_who_was_in_the_middle_when_it_was_killed_sees_a_reset(relayed: Relayed) -> None:
    """An end of file would make half an answer, or half an upload, look like all of it."""
    relayed.client.sendall(b"half of a request")
    assert relayed.server.recv(100) == b"half of a request"
    relayed.server.sendall(b"half of an answer")
    assert relayed.client.recv(100) == b"half of an answer"

    relayed.process.send_signal(signal.SIGKILL)

    for end in (relayed.client, relayed.server):
        with pytest.raises(ConnectionResetError):
            end.recv(100)


def test_a_direction_that_has_ended_does_not_hide_that_the_other_was_cut(relayed: Relayed) -> None:
    """Who has sent all and reads the answer is in the middle of it, too."""
    relayed.client.shutdown(socket.SHUT_WR)
    assert relayed.server.recv(100) == b""
    relayed.server.sendall(b"half of an answer")
    assert relayed.client.recv(100) == b"half of an answer"

    relayed.process.send_signal(signal.SIGKILL)

    with pytest.raises(ConnectionResetError):
        relayed.client.recv(100)


def test_what_ended_well_ends_without_a_reset(relayed: Relayed) -> None:
    """All that was sent arrives, however the ends come, also when nobody has read it yet."""
    answer = b"x" * 100_000
    relayed.client.shutdown(socket.SHUT_WR)
    assert relayed.server.recv(100) == b""
    relayed.server.sendall(answer)
    relayed.server.shutdown(socket.SHUT_WR)
    assert relayed.process.wait(20) == 0

    got = b""
    while part := relayed.client.recv(65536):
        got += part
    assert got == answer
