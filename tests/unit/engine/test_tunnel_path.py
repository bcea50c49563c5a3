"""Bytes through both proxies: whole, in order, in both directions, and no further than there is room."""

from __future__ import annotations

import hashlib
import os
import resource
import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from ambient.engine.channel import NOT_SENT_BYTES, SocketChannel
from ambient.wire.hbone_streams import FIRST_WINDOW_BYTES

MEBIBYTE = 1024 * 1024


def send_all(sock: socket.socket, data: bytes, *, eof: bool = True) -> threading.Thread:
    def run() -> None:
        with suppress(OSError):  # The other end may hang up on purpose.
            sock.sendall(data)
            if eof:
                sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def read_all(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(MEBIBYTE):
        parts.append(data)
    return b"".join(parts)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 9, 16_375, 16_384, 70_000, 5 * MEBIBYTE + 7, 48 * MEBIBYTE])
def test_every_size_arrives_both_ways(proxies: Any, size: int) -> None:
    """A byte lost, doubled or swapped on the way is a broken mesh, whatever the size."""
    upload, download = os.urandom(size), os.urandom(size)
    client, app = proxies.pair()

    with client, app:
        threads = [send_all(client, upload), send_all(app, download)]
        got_up: list[bytes] = []
        reader = threading.Thread(target=lambda: got_up.append(read_all(app)))
        reader.start()
        got_down = read_all(client)
        for thread in (*threads, reader):
            thread.join()

    assert digest(got_up[0]) == digest(upload)
    assert digest(got_down) == digest(download)
    proxies.loop.until(lambda: proxies.outbound and proxies.inbound)
    assert (proxies.outbound[0].a_to_b, proxies.outbound[0].b_to_a) == (size, size)
    assert proxies.outbound[0].error is None
    assert proxies.inbound[0].error is None


def test_an_end_of_file_keeps_the_other_direction_open(proxies: Any) -> None:
    """Many protocols send the request, end their side, and then read the answer."""
    client, app = proxies.pair()

    with client, app:
        client.sendall(b"request")
        client.shutdown(socket.SHUT_WR)
        assert read_all(app) == b"request"
        app.sendall(b"late answer")
        app.close()

        assert read_all(client) == b"late answer"


def test_the_server_may_end_first(proxies: Any) -> None:
    """The mirror image: an upload goes on after the server has said its last word."""
    client, app = proxies.pair()

    with client, app:
        app.sendall(b"banner")
        app.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"banner"
        client.sendall(b"still here")
        client.close()

        assert read_all(app) == b"still here"


def test_a_server_may_speak_first(proxies: Any) -> None:
    """SMTP and MySQL greet before the client says a word."""
    client, app = proxies.pair()

    with client, app:
        app.sendall(b"220 ready\r\n")

        assert client.recv(100) == b"220 ready\r\n"


def test_small_messages_ping_pong(proxies: Any) -> None:
    """Nothing may wait for more bytes before it moves on."""
    client, app = proxies.pair()

    with client, app:
        for number in range(300):
            message = b"%d" % number
            client.sendall(message)
            assert app.recv(100) == message
            app.sendall(message[::-1])
            assert client.recv(100) == message[::-1]


def test_many_streams_share_one_connection(proxies: Any) -> None:
    """One handshake for a pair of workloads, and no stream sees another's bytes."""
    pairs = [proxies.pair() for _ in range(40)]
    payloads = [os.urandom(200_000) for _ in pairs]

    threads = [send_all(client, payload) for (client, _), payload in zip(pairs, payloads, strict=True)]
    got = sorted(digest(read_all(app)) for _, app in pairs)
    for thread in threads:
        thread.join()

    assert got == sorted(map(digest, payloads))
    assert proxies.loop.do(lambda: proxies.pool.statistics().handshakes) == 1
    for client, app in pairs:
        client.close()
        app.close()
    proxies.loop.until(lambda: len(proxies.outbound) == 40)


def test_over_a_hundred_streams_take_a_second_connection(proxies: Any) -> None:
    """The bound per connection is a reason for another connection, not for a failure."""
    pairs = [proxies.pair() for _ in range(110)]

    assert proxies.loop.do(lambda: proxies.pool.statistics().handshakes) == 2
    for client, app in pairs:
        client.close()
        app.close()
    proxies.loop.until(lambda: len(proxies.outbound) == 110)


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def connect_and_read(proxies: Any) -> bytes:
    """The reset may come as early as during the connect."""
    with proxies.connect() as client:
        return bytes(client.recv(1))


def test_a_reset_of_the_client_reaches_the_server(proxies: Any) -> None:
    """A transaction cut in the middle must not look finished."""
    client, app = proxies.pair()
    client.sendall(b"half")
    assert app.recv(100) == b"half"

    reset(client)

    with app, pytest.raises(ConnectionResetError):
        app.recv(100)
    proxies.loop.until(lambda: proxies.outbound and proxies.inbound)
    assert proxies.outbound[0].error is not None
    assert proxies.inbound[0].error is not None


def test_a_reset_of_the_server_reaches_the_client(proxies: Any) -> None:
    """The same from the other side."""
    client, app = proxies.pair()
    app.sendall(b"half")
    assert client.recv(100) == b"half"

    reset(app)

    with client, pytest.raises(ConnectionResetError):
        client.recv(100)


def test_a_slow_reader_stops_its_sender_and_costs_a_window(proxies: Any) -> None:
    """hyper#4049: back-pressure must reach the sender, or the proxy's memory is the buffer."""
    client, app = proxies.pair()
    client.setblocking(False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    block = bytes(MEBIBYTE)

    sent, idle = 0, 0
    while idle < 20:
        try:
            sent += client.send(block)
            idle = 0
        except BlockingIOError:
            idle += 1
            time.sleep(0.01)

    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # Kernel buffers of two socket pairs (up to 6 MiB each way) and one 4 MiB window.
    assert sent < 40 * MEBIBYTE
    assert grown < 32 * 1024
    with client, app:
        client.setblocking(True)
        client.settimeout(20)
        client.shutdown(socket.SHUT_WR)
        assert len(read_all(app)) == sent


def test_the_kernel_holds_little_of_what_a_long_stream_sends(proxies: Any) -> None:
    """It takes 4 MiB for a reader that pauses, unless it is told not to; most connections are too short."""

    def bounds() -> set[int]:
        """Of the sockets to both applications, but for those of tunnels."""
        waiting = proxies.loop.reactor._callbacks.values()
        socks = [each._sock for each in waiting if type(each) is SocketChannel]
        return {sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) for sock in socks if sock}

    client, app = proxies.pair()
    with client, app:
        for sender, reader in ((client, app), (app, client)):
            sender.sendall(b"short")
            assert reader.recv(5) == b"short"
        assert NOT_SENT_BYTES not in proxies.loop.do(bounds)
        for sender, reader in ((client, app), (app, client)):
            sending = send_all(sender, bytes(FIRST_WINDOW_BYTES), eof=False)
            left = FIRST_WINDOW_BYTES
            while left:
                left -= len(reader.recv(left))
            sending.join()
        proxies.loop.until(lambda: bounds() == {NOT_SENT_BYTES})


def test_a_stalled_stream_does_not_stall_its_neighbours(proxies: Any) -> None:
    """They share one connection; its window is returned on receipt for exactly this reason."""
    stalled = [proxies.pair() for _ in range(8)]
    threads = [send_all(client, bytes(32 * MEBIBYTE)) for client, _ in stalled]
    client, app = proxies.pair()
    payload = os.urandom(8 * MEBIBYTE)

    with client, app:
        sender = send_all(client, payload)
        got = read_all(app)
        sender.join()

    assert digest(got) == digest(payload)
    for near, far in stalled:
        reset(far)
        near.close()
    for thread in threads:
        thread.join(0.2)


def test_a_refused_dial_is_answered_and_recorded(proxies: Any) -> None:
    """The application sees its connection end; the record says 503."""
    proxies.app.close()
    with pytest.raises(ConnectionResetError):
        connect_and_read(proxies)

    proxies.loop.until(lambda: proxies.refused)
    assert proxies.refused[0].status == 503


def test_an_exception_in_one_connection_spares_the_others(proxies: Any) -> None:
    """A bug met by one connection must not be everybody's."""
    client, app = proxies.pair()
    failures: list[Exception] = []
    proxies.loop.reactor.on_failure = failures.append

    def broken(request: Any) -> None:
        raise ZeroDivisionError("a bug")

    proxies.on_request = broken
    with pytest.raises(ConnectionResetError):
        connect_and_read(proxies)

    assert isinstance(failures[0], ZeroDivisionError)
    with client, app:
        client.sendall(b"alive")
        assert app.recv(10) == b"alive"
