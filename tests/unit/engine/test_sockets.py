"""Dialling, listening and plain channels, with real sockets."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
from typing import Any

import pytest

from ambient.engine import listener as listener_module
from ambient.engine.channel import LINGER_SECONDS, NullReceiver, SocketChannel
from ambient.engine.dial import Dialling, dial, dial_socket
from ambient.engine.listener import Listener
from ambient.engine.netns import (
    in_netns,
    listen_in,
    netns_identity,
    open_netns,
    original_destination,
    plain_address,
    socket_in,
)


class Collect(NullReceiver):
    """Remembers what a channel delivered."""

    def __init__(self) -> None:
        self.data = b""
        self.eof = False
        self.ready = 0
        self.closed: list[Exception | None] = []

    def data_received(self, data: memoryview) -> None:
        self.data += bytes(data)

    def eof_received(self) -> None:
        self.eof = True

    def write_ready(self) -> None:
        self.ready += 1

    def channel_closed(self, exc: Exception | None) -> None:
        self.closed.append(exc)


@pytest.fixture
def wired(loop: Any) -> Any:
    """(channel, its receiver, the socket at the other end)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        far = socket.create_connection(server.getsockname())
        near, _ = server.accept()
    near.setblocking(False)
    far.settimeout(10)
    channel = SocketChannel(loop.reactor, near)
    receiver = Collect()
    yield channel, receiver, far
    far.close()
    loop.do(channel.abort)
    loop.until(lambda: loop.reactor.statistics().descriptors == 0)


def test_a_channel_knows_both_addresses(loop: Any, wired: Any) -> None:
    """The access record needs them."""
    channel, _, far = wired
    assert channel.peer_address == far.getsockname()
    assert channel.local_address == far.getpeername()
    assert "0 in, 0 out" in repr(channel)


def test_small_writes_of_a_batch_leave_together(loop: Any, wired: Any) -> None:
    """Header and body in one packet: one system call, one wake-up at the peer."""
    channel, receiver, far = wired
    loop.do(lambda: channel.start(receiver))
    loop.do(lambda: [channel.write(b"a"), channel.write(b"b"), channel.write(memoryview(b"c"))])
    assert far.recv(10) == b"abc"


def test_backpressure_and_room(loop: Any, wired: Any) -> None:
    """writable turns False above the bound, and write_ready comes when there is room."""
    channel, receiver, far = wired
    loop.do(lambda: channel.start(receiver))
    block = bytes(1024 * 1024)
    count = 0
    while loop.do(lambda: channel.writable):
        loop.do(lambda: channel.write(block))
        count += 1
    loop.do(lambda: channel.write_parts([memoryview(b"x"), memoryview(b"y")], 2))
    loop.do(channel.write_eof)
    got = b""
    while data := far.recv(1 << 20):
        got += data

    assert got == block * count + b"xy"
    assert receiver.ready >= 1


def test_whoever_starts_with_a_full_queue_reads_all_the_same(loop: Any, wired: Any) -> None:
    """A peer may read only after it has been heard."""
    channel, receiver, far = wired
    while loop.do(lambda: channel.writable):
        loop.do(lambda: channel.write(bytes(1024 * 1024)))
    far.send(b"hear me first")
    loop.do(lambda: channel.start(receiver))
    loop.until(lambda: receiver.data == b"hear me first")


def test_parts_that_do_not_fit_keep_their_order(loop: Any, wired: Any) -> None:
    """The kernel may take half of the second slice."""
    channel, receiver, far = wired
    loop.do(lambda: channel.start(receiver))
    parts = [memoryview(os.urandom(700_000)) for _ in range(12)]
    loop.do(lambda: channel.write_parts(parts, sum(map(len, parts))))
    loop.do(channel.write_eof)
    got = b""
    while data := far.recv(1 << 20):
        got += data

    assert got == b"".join(parts)


def test_a_paused_channel_delivers_nothing(loop: Any, wired: Any) -> None:
    """Not even the end, until it is resumed; a hang-up meanwhile does not spin the loop."""
    channel, receiver, far = wired
    loop.do(lambda: (channel.start(receiver), channel.pause()))
    far.sendall(b"x")
    far.shutdown(socket.SHUT_WR)
    loop.do(channel.write_eof)
    assert far.recv(1) == b""
    loop.until(lambda: channel._parked)
    batches = loop.do(lambda: loop.reactor.statistics().batches)
    assert loop.do(lambda: loop.reactor.statistics().batches) - batches < 10
    assert receiver.data == b""

    loop.do(channel.resume)
    loop.until(lambda: receiver.closed)
    assert (receiver.data, receiver.eof, receiver.closed) == (b"x", True, [None])


def test_a_reset_while_paused_is_noticed(loop: Any, wired: Any) -> None:
    """Back-pressure must not hide that the peer is gone."""
    channel, receiver, far = wired
    loop.do(lambda: (channel.start(receiver), channel.pause()))
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    loop.until(lambda: receiver.closed)

    assert isinstance(receiver.closed[0], OSError)
    assert receiver.closed[0].errno == errno.ECONNRESET


def test_close_sends_everything_and_waits_a_moment(loop: Any, wired: Any) -> None:
    """An answer followed by a close must arrive, though the client is still sending."""
    channel, receiver, far = wired
    loop.do(lambda: channel.start(receiver))
    far.sendall(bytes(100_000))
    loop.do(lambda: (channel.write(b"answer"), channel.close(), channel.close()))
    assert far.recv(10) == b"answer"
    assert far.recv(10) == b""
    far.close()
    loop.until(lambda: receiver.closed)

    assert receiver.closed == [None]


def test_a_peer_that_never_ends_is_left_behind(loop: Any, wired: Any) -> None:
    """After the linger the descriptor is free."""
    channel, receiver, far = wired
    loop.do(lambda: (channel.start(receiver), channel.close()))
    assert far.recv(1) == b""
    loop.until(lambda: receiver.closed)
    assert LINGER_SECONDS <= 2


def test_an_exception_of_the_receiver_is_the_reason(loop: Any, wired: Any) -> None:
    """The record says which bug closed the connection."""
    channel, receiver, far = wired

    def broken(data: memoryview) -> None:
        raise ZeroDivisionError

    receiver.data_received = broken
    loop.do(lambda: channel.start(receiver))
    far.sendall(b"x")
    loop.until(lambda: receiver.closed)

    assert isinstance(receiver.closed[0], ZeroDivisionError)
    with pytest.raises(ConnectionResetError):
        far.recv(1)


def test_a_channel_that_ended_before_it_was_started(loop: Any, wired: Any) -> None:
    """The receiver is told all the same, once."""
    channel, receiver, _ = wired
    loop.do(channel.abort)
    loop.do(lambda: channel.start(receiver))
    loop.until(lambda: receiver.closed)
    assert channel.closed
    loop.do(lambda: (channel.write(b"x"), channel.write_eof(), channel.close(), channel.pause()))
    assert channel.peer_address == ("", 0)


def test_a_detached_socket_is_the_callers(loop: Any, wired: Any) -> None:
    """Plaintext turns out to be TLS: the handshake takes the socket over."""
    channel, _, far = wired
    with loop.do(channel.detach) as sock:
        far.sendall(b"x")
        sock.setblocking(True)
        assert sock.recv(1) == b"x"
    with pytest.raises(RuntimeError):
        loop.do(channel.detach)


def cancelled(dialling: Dialling | None) -> None:
    assert dialling is not None
    dialling.cancel()


def test_dialling(loop: Any) -> None:
    """A channel on success; the error, or silence after a cancel, otherwise."""
    results: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        loop.do(lambda: dial(loop.reactor, address, results.append, source=("127.0.0.2", 0)))
        loop.until(lambda: results)
        peer, name = server.accept()
        assert name[0] == "127.0.0.2"
        peer.close()
        loop.do(results[0].abort)
    loop.do(lambda: dial(loop.reactor, address, results.append))
    loop.do(lambda: cancelled(dial(loop.reactor, address, results.append)))
    loop.do(lambda: dial(loop.reactor, address, results.append, source=("192.0.2.1", 0)))
    loop.do(lambda: dial_socket(loop.reactor, address, results.append, netns_fd=0))
    loop.until(lambda: len(results) == 4)

    kinds = {type(result) for result in results[1:]}
    assert ConnectionRefusedError in kinds
    assert all(isinstance(result, OSError) for result in results[1:])
    loop.until(lambda: loop.reactor.statistics().descriptors == 0)


def test_a_dial_within_the_machine_is_done_at_once(loop: Any) -> None:
    """Nothing to wait for and nothing to cancel; whoever fails to take the socket need not close it."""
    taken: list[Any] = []

    def broken(result: socket.socket | OSError) -> None:
        taken.append(result)
        raise RuntimeError("a bug")

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        assert loop.do(lambda: dial_socket(loop.reactor, address, taken.append)) is None
        taken.pop().close()
        with pytest.raises(RuntimeError, match="a bug"):
            loop.do(lambda: dial_socket(loop.reactor, address, broken))
        assert taken[0].fileno() == -1


def test_a_dial_that_hangs_times_out(loop: Any) -> None:
    """A full backlog is the black hole that every machine has."""
    results: list[Any] = []
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(server.getsockname())
        loop.do(lambda: dial(loop.reactor, server.getsockname(), results.append, deadline=0.05))
        loop.until(lambda: results)
        for filler in fillers:
            filler.close()

    assert isinstance(results[0], TimeoutError)


def test_a_listener_survives_its_callback(loop: Any) -> None:
    """A bug met by one connection closes that one."""
    accepted: list[socket.socket] = []

    def first_fails(sock: socket.socket) -> None:
        accepted.append(sock)
        if len(accepted) == 1:
            raise ZeroDivisionError

    listener = loop.do(lambda: Listener(loop.reactor, listen_in(None, 0, host="127.0.0.1"), first_fails))
    with socket.create_connection(listener.address, 10) as one:
        assert one.recv(1) == b""
    with socket.create_connection(listener.address, 10):
        loop.until(lambda: len(accepted) == 2)
    accepted[1].close()
    assert loop.do(listener.accept_pending) == 0
    loop.do(listener.close)
    loop.do(listener.close)


def test_what_a_listener_accepts_resets_unless_it_ends_well(loop: Any) -> None:
    """If it is told so: whoever was not served must not take our end for his application's."""
    channels: list[SocketChannel] = []

    def accepted(sock: socket.socket) -> None:
        channels.append(SocketChannel(loop.reactor, sock, resets=True))

    sock = listen_in(None, 0, host="127.0.0.1")
    listener = loop.do(lambda: Listener(loop.reactor, sock, accepted, resets=True))
    with (
        socket.create_connection(listener.address, 10) as dropped,
        socket.create_connection(listener.address, 10) as served,
    ):
        loop.until(lambda: len(channels) == 2)
        loop.do(channels[0].detach).close()
        with pytest.raises(ConnectionResetError):
            dropped.recv(1)
        loop.do(channels[1].close)
        served.shutdown(socket.SHUT_WR)
        assert served.recv(1) == b""
        loop.until(lambda: channels[1].closed)
        assert served.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
    loop.do(listener.close)


def test_a_listener_without_descriptors_waits(loop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """EMFILE must not burn the CPU, and must heal by itself."""
    accepted: list[socket.socket] = []
    listener = loop.do(lambda: Listener(loop.reactor, listen_in(None, 0, host="127.0.0.1"), accepted.append))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as client:
        loop.do(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (client.fileno() + 1, hard)))
        try:
            client.connect(listener.address)
            loop.until(lambda: listener._timer is not None)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        loop.until(lambda: accepted)
    accepted[0].close()
    loop.do(listener.close)
    assert listener_module.FIRST_BACKOFF < listener_module.LAST_BACKOFF


def test_without_a_namespace_everything_is_here() -> None:
    """None means: stay; the loopback fabric and the tests live on it."""
    with in_netns(None), listen_in(None, 0) as both, socket_in(None, socket.AF_INET) as client:
        port = both.getsockname()[1]
        client.setblocking(True)
        client.connect(("127.0.0.1", port))
        both.setblocking(True)
        accepted, _ = both.accept()
        with accepted:
            assert original_destination(accepted) == ("127.0.0.1", port)
    with pytest.raises(OSError), listen_in(None, 0, host="192.0.2.1"):
        pass


@pytest.mark.parametrize(
    ("address", "plain"),
    [
        (("::ffff:10.0.0.1", 80, 0, 0), ("10.0.0.1", 80)),
        (("fe80::1%eth0", 80, 0, 2), ("fe80::1", 80)),
        (("10.0.0.1", 80), ("10.0.0.1", 80)),
    ],
)
def test_addresses_have_one_spelling(address: tuple[Any, ...], plain: tuple[str, int]) -> None:
    """They are dictionary keys on the data path."""
    assert plain_address(address) == plain


def test_a_namespace_is_a_device_and_an_inode() -> None:
    """Two descriptors of one namespace are one."""
    one, two = open_netns("/proc/self/ns/net"), open_netns("/proc/thread-self/ns/net")
    assert netns_identity(one) == netns_identity(two)
    os.close(one)
    os.close(two)
