"""Sockets made in another namespace stay there, and we come back."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from fcntl import ioctl
from typing import Any

import pytest

from ambient.engine.dial import dial
from ambient.engine.netns import (
    CLONE_NEWNET,
    PROXY_MARK,
    in_netns,
    listen_in,
    netns_identity,
    open_netns,
    original_destination,
    socket_in,
)
from ambient.engine.reactor import Reactor

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(os.geteuid() != 0, reason="setns from a test process needs root"),
]


def loopback_up() -> None:
    """SIOCSIFFLAGS on lo (netdevice(7)), in the calling thread's namespace."""
    with socket.socket() as sock:
        ioctl(sock, 0x8914, struct.pack("16sH14x", b"lo", 1))


@pytest.fixture
def netns() -> Iterator[int]:
    """A fresh namespace with its loopback up; it ends with its descriptor."""
    box: list[int] = []

    def make() -> None:
        assert ctypes.CDLL(None).unshare(CLONE_NEWNET) == 0
        loopback_up()
        box.append(open_netns("/proc/thread-self/ns/net"))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    yield box[0]
    os.close(box[0])


def here() -> tuple[int, int]:
    fd = open_netns("/proc/thread-self/ns/net")
    try:
        return netns_identity(fd)
    finally:
        os.close(fd)


def test_we_come_back_even_after_an_error(netns: int) -> None:
    """A daemon that stays in a pod's namespace would serve one pod's traffic as another's."""
    home = here()
    with in_netns(netns):
        assert here() == netns_identity(netns)
    with suppress(ZeroDivisionError), in_netns(netns):
        raise ZeroDivisionError
    assert here() == home
    with (
        pytest.raises(OSError, match="cannot enter"),
        open("/dev/null") as stranger,
        in_netns(stranger.fileno()),
    ):
        pass
    assert here() == home


def test_a_listener_lives_in_the_pod(netns: int) -> None:
    """Reached from inside on both families, transparent and marked, and not from here."""
    with listen_in(netns, 0, transparent=True, mark=PROXY_MARK) as listener:
        port = listener.getsockname()[1]
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == PROXY_MARK
        listener.setblocking(True)
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with socket_in(netns, family, mark=PROXY_MARK, transparent=True) as client:
                client.setblocking(True)
                client.connect((host, port))
                accepted, _ = listener.accept()
                with accepted:
                    assert original_destination(accepted) == (host, port)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 2)


def test_dialling_from_inside_with_a_foreign_source(netns: int) -> None:
    """The application sees its client's address, not the proxy's."""
    results: list[Any] = []
    reactor = Reactor()
    with listen_in(netns, 0) as listener:
        port = listener.getsockname()[1]
        source = ("127.9.9.9", 0)
        dial(reactor, ("127.0.0.1", port), results.append, netns_fd=netns, source=source, transparent=True)
        while not results:
            reactor.run_once(5)
        listener.setblocking(True)
        accepted, address = listener.accept()
        with accepted:
            assert address[0] == "::ffff:127.9.9.9"
        results[0].abort()
    reactor.close()


def test_who_makes_many_keeps_the_way_back(netns: int) -> None:
    """Home again after each, also after one that fails; and nothing stays open that the loop had opened."""
    home, open_before = here(), len(os.listdir("/proc/self/fd"))
    results: list[Any] = []
    reactor = Reactor()
    with listen_in(netns, 0) as listener, open("/dev/null") as stranger:
        address = ("127.0.0.1", listener.getsockname()[1])
        for fd in (netns, stranger.fileno(), netns):
            dial(reactor, address, results.append, netns_fd=fd)
            assert here() == home
        with pytest.raises(OSError, match="not supported"):
            socket_in(netns, 0xFFFF, home=reactor.home())
        assert here() == home
        while len(results) < 3:
            reactor.run_once(5)
    failed, *connected = sorted(results, key=lambda each: not isinstance(each, OSError))
    assert "cannot enter" in str(failed)
    for channel in connected:
        channel.abort()
    reactor.close()
    assert len(os.listdir("/proc/self/fd")) == open_before
