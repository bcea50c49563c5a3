"""Accepting connections in the reactor, and not burning the CPU when descriptors run out.

Floor 2.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeAlias

from ambient.engine.reactor import Reactor

OnConnection: TypeAlias = Callable[[socket.socket], None]


class Listener:
    """Calls *on_connection* with each accepted (non-blocking, TCP_NODELAY) socket.

    An exception of *on_connection* closes that socket only.

    Args:
        sock: Listening, non-blocking; ours to close.
    """

    def __init__(self, reactor: Reactor, sock: socket.socket, on_connection: OnConnection) -> None:
        raise NotImplementedError

    def accept_pending(self) -> int:
        """Accept everything that is in the queue now; for emptying it before ``close``."""
        raise NotImplementedError

    def close(self) -> None:
        """Stop accepting and close the socket; idempotent."""
        raise NotImplementedError
