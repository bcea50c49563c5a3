"""Waiting for a connection's first byte without taking it: is it TLS, plaintext, or silence?"""

from __future__ import annotations

import socket
from collections.abc import Callable
from enum import Enum

from ambient.engine.reactor import IN, Reactor, Timer

# Content type "handshake" of a TLS record (RFC 8446 section 5.1).
TLS_HANDSHAKE = 0x16
# Server-first protocols are silent until we connect them; Envoy's tls_inspector gives up after as long as it
# is told. Clients that speak first do so within a round trip. Picked, not measured.
SILENCE_SECONDS = 0.1


class First(Enum):
    """What came first."""

    TLS = "tls"
    PLAIN = "plain"
    SILENCE = "silence"
    CLOSED = "closed"


class FirstByte:
    """Looks at one accepted, non-blocking socket; *on_first* is called once, *sock* stays the caller's.

    Args:
        patience: Seconds of silence after which the answer is ``SILENCE``.
    """

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        on_first: Callable[[First], None],
        patience: float = SILENCE_SECONDS,
    ) -> None:
        self._reactor = reactor
        self._sock = sock
        self._on_first = on_first
        self._timer: Timer | None = None
        first = self._peek()
        if first is not None:
            on_first(first)
            return
        reactor.add(sock.fileno(), IN, self._on_event, self._crashed)
        self._timer = reactor.call_later(patience, lambda: self._done(First.SILENCE), self._crashed)

    def _peek(self) -> First | None:
        try:
            data = self._sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return First.CLOSED
        if not data:
            return First.CLOSED
        return First.TLS if data[0] == TLS_HANDSHAKE else First.PLAIN

    def _on_event(self, events: int) -> None:
        first = self._peek()
        if first is not None:
            self._done(first)

    def _done(self, first: First) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._reactor.remove(self._sock.fileno())
        self._on_first(first)

    def _crashed(self, exc: Exception) -> None:
        self._sock.close()
