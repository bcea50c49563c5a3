"""Outgoing TCP connections, from any network namespace, within a deadline.

Floor 2.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from ambient.engine.channel import SocketChannel
from ambient.engine.netns import socket_in
from ambient.engine.reactor import OUT, Reactor, Timer

DialDone: TypeAlias = Callable[[socket.socket | OSError], None]


class Dialling:
    """A connection attempt that takes time; ``cancel`` ends it without calling back."""

    __slots__ = ("_on_done", "_reactor", "_sock", "_timer")

    def __init__(self, reactor: Reactor, on_done: DialDone) -> None:
        self._reactor = reactor
        self._on_done: DialDone | None = on_done
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None

    def cancel(self) -> None:
        """Give up silently; without effect once it has called back."""
        self._on_done = None
        self._close()

    def _await(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._reactor.add(sock.fileno(), OUT, self._on_event, self._crashed)
        late = TimeoutError(errno.ETIMEDOUT, f"no connection within {deadline:g} s")
        self._timer = self._reactor.call_later(deadline, partial(self._failed, late), self._crashed)

    def _fail_soon(self, exc: OSError) -> None:
        self._reactor.call_soon(partial(self._failed, exc), self._crashed)

    def _on_event(self, events: int) -> None:
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._failed(OSError(code, os.strerror(code)))
            return
        sock, on_done = self._release(), self._on_done
        self._on_done = None
        if sock is not None and on_done is not None:
            _hand_over(self._reactor, sock, on_done)

    def _failed(self, exc: OSError) -> None:
        self._close()
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(exc)

    def _release(self) -> socket.socket | None:
        """Wait no more for the socket that is returned."""
        sock, self._sock = self._sock, None
        if self._timer is not None:
            self._timer.cancel()
        if sock is not None:
            self._reactor.remove(sock.fileno())
        return sock

    def _close(self) -> None:
        sock = self._release()
        if sock is not None:
            sock.close()

    def _crashed(self, exc: Exception) -> None:
        self._close()


def dial_socket(
    reactor: Reactor,
    address: tuple[str, int],
    on_done: DialDone,
    *,
    netns_fd: int | None = None,
    mark: int | None = None,
    source: tuple[str, int] | None = None,
    transparent: bool = False,
    deadline: float | None = None,
) -> Dialling | None:
    """Connect to (ip, port); *on_done* gets the connected non-blocking socket (TCP_NODELAY), or the
    OSError (``TimeoutError`` at the deadline).

    Within a machine the kernel is done before ``connect`` returns: then *on_done* has got the socket, and
    there is nothing to cancel: None. An error never comes before this returns.

    Args:
        source: (ip, port 0) to bind before connecting; foreign if *transparent*.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        home = reactor.home() if netns_fd is not None else None
        sock = socket_in(netns_fd, family, mark=mark, transparent=transparent, home=home)
    except OSError as exc:
        return _failing(reactor, exc, on_done)
    try:
        _begin(reactor, sock, address, source)
    except OSError as exc:
        sock.close()
        return _failing(reactor, exc, on_done)
    try:
        sock.getpeername()
    except OSError:  # Not connected yet.
        dialling = Dialling(reactor, on_done)
        dialling._await(sock, reactor.limits.dial if deadline is None else deadline)
        return dialling
    _hand_over(reactor, sock, on_done)
    return None


def dial(
    reactor: Reactor,
    address: tuple[str, int],
    on_done: Callable[[SocketChannel | OSError], None],
    *,
    netns_fd: int | None = None,
    mark: int | None = None,
    source: tuple[str, int] | None = None,
    transparent: bool = False,
    deadline: float | None = None,
) -> Dialling | None:
    """``dial_socket``, giving a ``SocketChannel``."""

    def connected(result: socket.socket | OSError) -> None:
        on_done(result if isinstance(result, OSError) else SocketChannel(reactor, result))

    return dial_socket(
        reactor,
        address,
        connected,
        netns_fd=netns_fd,
        mark=mark,
        source=source,
        transparent=transparent,
        deadline=deadline,
    )


def _begin(
    reactor: Reactor, sock: socket.socket, address: tuple[str, int], source: tuple[str, int] | None
) -> None:
    """Let the kernel connect; raises what it says at once."""
    if sock.fileno() >= reactor.headroom.dials_below:
        reactor.headroom.refused("descriptors")
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if source is not None:
        if source[1]:
            # A chosen port must be free against this destination only, not against all (TIME_WAIT).
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(source)
    code = sock.connect_ex(address)
    if code not in (0, errno.EINPROGRESS):
        raise OSError(code, os.strerror(code))


def _failing(reactor: Reactor, exc: OSError, on_done: DialDone) -> Dialling:
    dialling = Dialling(reactor, on_done)
    dialling._fail_soon(exc)
    return dialling


def _hand_over(reactor: Reactor, sock: socket.socket, on_done: DialDone) -> None:
    try:
        on_done(sock)
    except Exception:
        if not reactor.registered(sock.fileno()):
            sock.close()  # Nobody took it.
        raise
