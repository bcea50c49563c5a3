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
    """A connection attempt; ``cancel`` ends it without calling back."""

    __slots__ = ("_on_done", "_reactor", "_sock", "_timer", "_waiting")

    def __init__(self, reactor: Reactor, on_done: DialDone) -> None:
        self._reactor = reactor
        self._on_done: DialDone | None = on_done
        self._sock: socket.socket | None = None
        self._timer: Timer | None = None
        self._waiting = False

    def cancel(self) -> None:
        """Give up silently; without effect once it has called back."""
        self._on_done = None
        self._release(close=True)

    def _begin(self, sock: socket.socket, address: tuple[str, int], deadline: float) -> None:
        code = sock.connect_ex(address)
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            self._fail_soon(OSError(code, os.strerror(code)))
            return
        self._sock = sock
        try:
            sock.getpeername()
        except OSError:
            pass  # Not connected yet.
        else:
            # On this machine the kernel is done before it returns; neither epoll nor a timer is needed.
            self._reactor.call_soon(self._connected, self._crashed)
            return
        self._waiting = True
        self._reactor.add(sock.fileno(), OUT, self._on_event, self._crashed)
        late = TimeoutError(errno.ETIMEDOUT, f"no connection within {deadline:g} s")
        self._timer = self._reactor.call_later(deadline, lambda: self._done(late), self._crashed)

    def _fail_soon(self, exc: OSError) -> None:
        self._reactor.call_soon(partial(self._done, exc), self._crashed)

    def _on_event(self, events: int) -> None:
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._done(OSError(code, os.strerror(code)) if code else None)

    def _done(self, exc: OSError | None) -> None:
        if exc is None:
            self._connected()
            return
        self._release(close=True)
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(exc)

    def _connected(self) -> None:
        sock, on_done = self._sock, self._on_done
        if sock is None or on_done is None:
            return  # Given up.
        if self._waiting:
            self._release(close=False)
        self._sock = self._on_done = None
        try:
            on_done(sock)
        except Exception:
            if not self._reactor.registered(sock.fileno()):
                sock.close()  # Nobody took it.
            raise

    def _release(self, *, close: bool) -> None:
        sock, self._sock = self._sock, None
        if self._timer is not None:
            self._timer.cancel()
        if sock is not None:
            if self._waiting:
                self._reactor.remove(sock.fileno())
            if close:
                sock.close()

    def _crashed(self, exc: Exception) -> None:
        self._release(close=True)


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
) -> Dialling:
    """Connect to (ip, port); *on_done* gets the connected non-blocking socket (TCP_NODELAY), or the
    OSError (``TimeoutError`` at the deadline). Never calls back before it returns.

    Args:
        source: (ip, port 0) to bind before connecting; foreign if *transparent*.
    """
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    if deadline is None:
        deadline = reactor.limits.dial
    dialling = Dialling(reactor, on_done)
    try:
        home = reactor.home() if netns_fd is not None else None
        sock = socket_in(netns_fd, family, mark=mark, transparent=transparent, home=home)
    except OSError as exc:
        dialling._fail_soon(exc)
        return dialling
    if sock.fileno() >= reactor.headroom.dials_below:
        reactor.headroom.refused("descriptors")
        sock.close()
        dialling._fail_soon(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
        return dialling
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source is not None:
            if source[1]:
                # A chosen port must be free against this destination only, not against all (TIME_WAIT).
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(source)
        dialling._begin(sock, address, deadline)
    except OSError as exc:
        sock.close()
        dialling._fail_soon(exc)
    return dialling


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
) -> Dialling:
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
