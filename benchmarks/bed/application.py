"""The application behind the proxies: says its port, then serves until it is killed.

    python -m benchmarks.bed.application 127.1.2.3

What a connection's first byte is decides: ``p`` is echoed, ``o`` is echoed once and then closed with a
FIN, ``s`` is never read again, and anything else is swallowed.
"""

from __future__ import annotations

import select
import socket
import sys

from ambient.engine.headroom import raise_file_limit
from ambient.engine.netns import listen_in

READ_BYTES = 1024 * 1024


class Application:
    """All connections, in one thread."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._poll = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        self._swallow: set[int] = set()
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._poll.register(listener, select.EPOLLIN)

    def serve(self) -> None:
        """For ever."""
        door = self._listener.fileno()
        while True:
            for fd, _ in self._poll.poll():
                if fd == door:
                    self._accept()
                    continue
                try:
                    self._readable(fd, self._socks[fd])
                except BlockingIOError:
                    pass
                except OSError:
                    self._forget(fd)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socks[sock.fileno()] = sock
            self._poll.register(sock, select.EPOLLIN)

    def _readable(self, fd: int, sock: socket.socket) -> None:
        if fd in self._swallow:
            # MSG_TRUNC: the kernel drops it without a copy, for the bytes are of no interest.
            if not sock.recv_into(self._buffer, READ_BYTES, socket.MSG_TRUNC):
                self._forget(fd)
            return
        size = sock.recv_into(self._buffer)
        kind = self._buffer[0] if size else 0
        if kind == ord("p"):
            sock.send(self._buffer[:size])
        elif kind == ord("o"):
            sock.send(self._buffer[:size])
            self._forget(fd)
        elif kind == ord("s"):
            self._poll.modify(fd, 0)
        elif kind:
            self._swallow.add(fd)
        else:
            self._forget(fd)

    def _forget(self, fd: int) -> None:
        self._swallow.discard(fd)
        self._poll.unregister(fd)
        self._socks.pop(fd).close()


def main() -> None:
    """Listen, say the port, serve."""
    raise_file_limit()
    listener = listen_in(None, 0, host=sys.argv[1])
    print(listener.getsockname()[1], flush=True)
    Application(listener).serve()


if __name__ == "__main__":
    main()
