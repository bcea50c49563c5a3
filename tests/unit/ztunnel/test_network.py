"""A pod's namespace is what it says, and a taken source port is not the end."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from ambient.engine.reactor import Reactor
from ztunnel import network
from ztunnel.network import Address, Cancellable, NetnsNetwork, OnDialled
from ztunnel.source_port_plan import FIRST_PORT, MAX_ATTEMPTS, SPARE_LAST_PORT


@pytest.mark.parametrize(
    "path", ["/proc/self/ns/net", "/proc/self/ns/mnt"], ids=["the-nodes-own", "another-kind"]
)
def test_only_a_pods_network_namespace_will_do(path: str, reactor: Reactor) -> None:
    """An agent that sends the node's own namespace would have us capture the node."""
    fd = os.open(path, os.O_RDONLY)
    with pytest.raises(OSError, match="namespace"):
        NetnsNetwork(reactor, fd)
    os.close(fd)


def test_a_file_is_no_namespace(reactor: Reactor) -> None:
    """ioctl says so."""
    with open("/dev/null") as file, pytest.raises(OSError):
        NetnsNetwork(reactor, file.fileno())


class Dials:
    """Stands in for ``dial_socket``; answers when told to."""

    def __init__(self) -> None:
        self.sources: list[Address | None] = []
        self.answers: list[OnDialled] = []
        self.cancelled = 0

    def __call__(self, reactor: Reactor, address: Address, on_done: OnDialled, **how: object) -> Cancellable:
        source = how["source"]
        assert source is None or isinstance(source, tuple)
        assert how["transparent"] is (source is not None)
        self.sources.append(source)
        self.answers.append(on_done)
        return self

    def cancel(self) -> None:
        self.cancelled += 1


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


@pytest.fixture
def dials(monkeypatch: pytest.MonkeyPatch) -> Dials:
    made = Dials()
    monkeypatch.setattr(network, "dial_socket", made)
    monkeypatch.setattr(network, "_require_pods_namespace", lambda fd: None)
    return made


TARGET = ("10.0.0.2", 80)
TAKEN = OSError(errno.EADDRINUSE, "in use")


def test_a_taken_port_is_stepped_over(dials: Dials, reactor: Reactor) -> None:
    """The client's address with some free port."""
    pod = NetnsNetwork(reactor, -1)
    done: list[socket.socket | OSError] = []
    pod.dial(TARGET, done.append, source="10.0.0.1")
    dials.answers[-1](TAKEN)
    assert done == []
    refused = OSError(errno.ECONNREFUSED, "refused")
    dials.answers[-1](refused)

    assert done == [refused]
    first, second = dials.sources
    assert first is not None
    assert second is not None
    assert first != second
    assert {first[0], second[0]} == {"10.0.0.1"}
    assert min(first[1], second[1]) >= FIRST_PORT


def test_all_ports_taken_is_an_error_in_the_end(dials: Dials, reactor: Reactor) -> None:
    """It must not go round for ever."""
    pod = NetnsNetwork(reactor, -1)
    done: list[socket.socket | OSError] = []
    pod.dial(TARGET, done.append, source="10.0.0.1")
    for _ in range(MAX_ATTEMPTS):
        dials.answers[-1](TAKEN)

    assert done == [TAKEN]
    assert len(dials.sources) == MAX_ATTEMPTS
    last = dials.sources[-1]
    assert last is not None
    assert last[1] <= SPARE_LAST_PORT


def test_what_has_connected_at_once_cannot_be_given_up(
    monkeypatch: pytest.MonkeyPatch, dials: Dials, reactor: Reactor
) -> None:
    """Also not when the first port was taken."""
    done: list[socket.socket | OSError] = []
    with socket.socket() as connected:

        def at_once(reactor: Reactor, address: Address, on_done: OnDialled, **how: object) -> None:
            on_done(connected)

        spoofed = NetnsNetwork(reactor, -1).dial(TARGET, done.append, source="10.0.0.1")
        monkeypatch.setattr(network, "dial_socket", at_once)
        assert NetnsNetwork(reactor, -1).dial(TARGET, done.append, source="10.0.0.1") is None
        assert done == [connected]
        dials.answers[0](TAKEN)
        assert done == [connected, connected]
        assert spoofed is not None
        spoofed.cancel()

    assert dials.cancelled == 0


def test_giving_up_reaches_the_attempt_under_way(dials: Dials, reactor: Reactor) -> None:
    """Not the first one, which is over."""
    dialling = NetnsNetwork(reactor, -1).dial(TARGET, lambda result: None, source="10.0.0.1")
    dials.answers[-1](TAKEN)
    assert dialling is not None
    dialling.cancel()

    assert dials.cancelled == 1


@pytest.mark.parametrize("source", ["", "10.0.0.2"], ids=["outbound", "to-itself"])
def test_nothing_is_spoofed_without_need(dials: Dials, reactor: Reactor, source: str) -> None:
    """A pod that calls itself has its own address already."""
    NetnsNetwork(reactor, -1).dial(TARGET, lambda result: None, source=source)

    assert dials.sources == [None]
