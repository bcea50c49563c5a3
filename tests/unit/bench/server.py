"""A small threaded HTTP/1.1 server whose answers a test chooses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
END = b"\r\n\r\n"


@dataclass
class Served:
    """What the server saw."""

    port: int
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0


@contextmanager
def serving(answer: Callable[[int], bytes | None] = lambda _number: OK) -> Iterator[Served]:
    """Answer request *n* (from 1) with ``answer(n)``; None closes the connection instead."""
    listener = socket.create_server(("127.0.0.1", 0))
    served = Served(listener.getsockname()[1])
    live: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def serve(sock: socket.socket) -> None:
        buffer = b""
        with sock:
            try:
                while data := sock.recv(65536):
                    buffer += data
                    while END in buffer:
                        head, _, buffer = buffer.partition(END)
                        served.requests.append(head)
                        reply = answer(len(served.requests))
                        if reply is None:
                            return
                        sock.sendall(reply)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            served.connections += 1
            live.append(sock)
            threads.append(threading.Thread(target=serve, args=(sock,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield served
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for sock in live:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in [acceptor, *threads]:
            thread.join()
