"""Outgoing TCP connections, from any network namespace, within a deadline.

Floor 2.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TypeAlias

from ambient.engine.channel import SocketChannel  # type: ignore[attr-defined]
from ambient.engine.reactor import Reactor

DIAL_DEADLINE = 10.0

DialDone: TypeAlias = Callable[[socket.socket | OSError], None]


class Dialling:
    """A connection attempt; ``cancel`` ends it without calling back."""

    def cancel(self) -> None:
        """Give up silently."""
        raise NotImplementedError


def dial_socket(
    reactor: Reactor,
    address: tuple[str, int],
    on_done: DialDone,
    *,
    netns_fd: int | None = None,
    mark: int | None = None,
    source: tuple[str, int] | None = None,
    transparent: bool = False,
    deadline: float = DIAL_DEADLINE,
) -> Dialling:
    """Connect to (ip, port); *on_done* gets the connected non-blocking socket, or the OSError
    (``TimeoutError`` at the deadline). Never calls back before it returns."""
    raise NotImplementedError


def dial(
    reactor: Reactor,
    address: tuple[str, int],
    on_done: Callable[[SocketChannel | OSError], None],
    *,
    netns_fd: int | None = None,
    mark: int | None = None,
    source: tuple[str, int] | None = None,
    transparent: bool = False,
    deadline: float = DIAL_DEADLINE,
) -> Dialling:
    """``dial_socket``, giving a ``SocketChannel``.

    Args:
        source: (ip, port 0) to bind before connecting; foreign if *transparent*.
    """
    raise NotImplementedError
