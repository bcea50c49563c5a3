"""The bed of the benchmarks: two of our daemons in their places carry a message, as the figures need."""

from __future__ import annotations

import socket
import threading

import pytest

from benchmarks.bed.proxies import Ours
from tests.flow.loopback import fresh_ip

pytestmark = pytest.mark.slow

PATIENCE = 30.0


def test_a_message_goes_there_and_back_through_the_two_daemons(tmp_path):
    server_ip, client_ip = fresh_ip(), fresh_ip()
    with socket.create_server((server_ip, 0)) as listener:
        listener.settimeout(PATIENCE)
        echo = threading.Thread(target=answer_once, args=(listener,))
        echo.start()
        pair = Ours(tmp_path, listener.getsockname(), client_ip)
        try:
            assert round_trip(pair.door, b"hello") == b"hello"
        finally:
            pair.stop()
            echo.join(PATIENCE)


def answer_once(listener: socket.socket) -> None:
    """Echo one connection."""
    sock, _ = listener.accept()
    with sock:
        sock.settimeout(PATIENCE)
        while data := sock.recv(1024):
            sock.sendall(data)


def round_trip(address: tuple[str, int], message: bytes) -> bytes:
    """Say *message* and its end; returns everything that comes back."""
    with socket.create_connection(address, PATIENCE) as sock:
        sock.sendall(message)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(1024), b""))
