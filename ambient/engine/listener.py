"""Accepting connections in the reactor, and not burning the CPU when descriptors or memory run out.

Floor 2. One connection too many is reset, and the listener pauses: those behind it wait in the queue, and
most of them are served when there is room again.
"""

from __future__ import annotations

import errno
import socket
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

from ambient.engine.channel import RESET_ON_CLOSE
from ambient.engine.reactor import IN, Reactor, Timer

OnConnection: TypeAlias = Callable[[socket.socket], None]

# Connections per wake-up: one busy listener must not starve the relays. Picked, not measured.
ACCEPTS_PER_EVENT = 64
# linux/tcp.h: tcpi_unacked is the length of the queue where the socket listens, and ends there.
UNACKED_AT, TCP_INFO_BYTES = 24, 28
# When descriptors or memory run out the queue waits, twice as long each time (reference/threats.md 4).
FIRST_BACKOFF = 0.05
LAST_BACKOFF = 1.0
# What accept(2) says of a connection that died in the queue, or that the network says of it: go on.
_TRANSIENT = frozenset(
    (errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH,
     errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ENOPROTOOPT, errno.EPERM)
)  # fmt: skip


class Listener:
    """Calls *on_connection* with each accepted (non-blocking, TCP_NODELAY) socket.

    An exception of *on_connection* closes that socket only, and is recorded by the reactor.

    Args:
        sock: Listening, non-blocking; ours to close.
        resets: Whoever closes what it accepts resets it (``SocketChannel.reset_unless_finished``).

    Attributes:
        accepted_from: The peer's address, as the kernel says it, of the connection accepted last.
    """

    def __init__(
        self, reactor: Reactor, sock: socket.socket, on_connection: OnConnection, *, resets: bool = False
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._on_connection = on_connection
        self._backoff = FIRST_BACKOFF
        self._timer: Timer | None = None
        self._open = True
        self.accepted_from: Any = None
        sock.setblocking(False)
        self._family = int(sock.family)
        # Accepted ones inherit both.
        if self._family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if resets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        reactor.add(sock.fileno(), IN, self._on_event, self._crashed)

    @property
    def address(self) -> tuple[str, int]:
        """(ip, port) it listens on."""
        name = self._sock.getsockname()
        return str(name[0]), int(name[1])

    def fileno(self) -> int:
        """The socket's descriptor, for whoever is to hold it over our end; -1 when closed."""
        return self._sock.fileno()

    def accept_pending(self) -> int:
        """Accept everything that is in the queue now; for emptying it before ``close``."""
        accepted = 0
        while self._open and self._accept():
            accepted += 1
        return accepted

    def close(self) -> None:
        """Stop accepting and close the socket; idempotent."""
        if not self._open:
            return
        self._open = False
        self._reactor.remove(self._sock.fileno())
        self._sock.close()
        if self._timer is not None:
            self._timer.cancel()

    def _on_event(self, events: int) -> None:
        for _ in range(min(self._knocking(), ACCEPTS_PER_EVENT)):
            if not self._open or not self._accept():
                return

    def _knocking(self) -> int:
        """How many wait: asking costs a fraction of one more that is refused."""
        try:
            info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
            return int.from_bytes(info[UNACKED_AT:], sys.byteorder) or ACCEPTS_PER_EVENT
        except OSError:
            return ACCEPTS_PER_EVENT  # Not TCP.

    def _accept(self) -> bool:
        headroom = self._reactor.headroom
        if headroom.memory and headroom.full:
            headroom.refused("memory")
            self._pause()
            return False
        try:
            # As socket.accept() does, without its detour over enumerations.
            fd, self.accepted_from = self._sock._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno not in _TRANSIENT:
                self._reactor.headroom.refused("descriptors")
                self._pause()
                return False
            return True
        if (fd >= headroom.accepts_below or headroom.memory) and headroom.refuses(fd):
            _reset(fd)
            self._pause()
            return False
        self._backoff = FIRST_BACKOFF
        sock = socket.socket(self._family, socket.SOCK_STREAM, 0, fileno=fd)
        try:
            sock.setblocking(False)
            self._on_connection(sock)
        except Exception as exc:
            if not self._reactor.registered(sock.fileno()):
                sock.close()  # Nobody took it.
            self._reactor.record_failure(exc)
        return True

    def _pause(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._reactor.modify(self._sock.fileno(), 0)
        self._timer = self._reactor.call_later(self._backoff, self._again, self._crashed)
        self._backoff = min(self._backoff * 2, LAST_BACKOFF)

    def _again(self) -> None:
        self._reactor.modify(self._sock.fileno(), IN)

    def _crashed(self, exc: Exception) -> None:
        """A broken listener is noticed by its owner's attestation; the loop goes on."""


def _reset(fd: int) -> None:
    """Close so that the peer hears of a refusal, not of an end."""
    with socket.socket(fileno=fd) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
