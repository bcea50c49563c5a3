"""Byte channels: what the reactor moves bytes between.

Floor 2. ``SocketChannel`` here, ``TlsChannel`` (``ambient.engine.tls``) and ``TunnelStream``
(``ambient.engine.tunnel``) all keep the contract of ``Channel``, so that a relay, an HTTP exchange or
a test does not know which one it holds.

The contract, in the order in which things happen to a receiver::

    start(receiver)
      data_received(view) *     never while paused; the view is gone when the call returns
      eof_received()            at most once; the other direction may live on
      write_ready()             after ``writable`` was False: there is room again
    channel_closed(exc | None)  exactly once, last; None if both ends said goodbye properly

A channel closes itself, telling the receiver, when both directions have ended and everything is sent.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from ambient.engine.netns import plain_address
from ambient.engine.reactor import HANG_UP, IN, OUT, Reactor, Timer

Data: TypeAlias = bytes | bytearray | memoryview

# ``writable`` turns False above this many bytes not yet taken by the kernel; a fast writer may
# overshoot by one read. Picked, not measured.
WRITE_HIGH_BYTES = 256 * 1024
# Slices per sendmsg; the kernel's bound is IOV_MAX (1024).
MAX_SLICES = 64
NODELAY = (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


class Receiver(Protocol):
    """Whoever consumes what a channel delivers; all calls come from the reactor."""

    def data_received(self, data: memoryview) -> None:
        """Bytes arrived; *data* is valid only during the call."""
        ...

    def eof_received(self) -> None:
        """The peer sends no more; writing may go on."""
        ...

    def write_ready(self) -> None:
        """``writable`` became True again."""
        ...

    def channel_closed(self, exc: Exception | None) -> None:
        """It is over; *exc* says why if it did not end well. Nothing else is called afterwards."""
        ...


class Channel(Protocol):
    """One bidirectional byte stream; see the module for the order of calls."""

    bytes_in: int
    bytes_out: int

    @property
    def peer_address(self) -> tuple[str, int]:
        """(ip, port) of the other end, canonical text."""
        ...

    @property
    def local_address(self) -> tuple[str, int]:
        """(ip, port) of this end."""
        ...

    @property
    def writable(self) -> bool:
        """False above the bound: write no more until ``write_ready``."""
        ...

    def start(self, receiver: Receiver) -> None:
        """Deliver to *receiver* from now on. Must be called once; until then nothing is read."""
        ...

    def write(self, data: Data) -> None:
        """Send all of *data*, now or later; never blocks. Ignored after an abort."""
        ...

    def write_eof(self) -> None:
        """Send an end of file after what was written; reading goes on."""
        ...

    def pause(self) -> None:
        """Deliver nothing (no data, no end of file) until ``resume``."""
        ...

    def resume(self) -> None:
        """Undo ``pause``; delivery starts after the current callback."""
        ...

    def close(self) -> None:
        """Send what was written and an end of file, read no more, then close."""
        ...

    def abort(self) -> None:
        """End it now; the peer sees a reset. The receiver still gets ``channel_closed``."""
        ...


class NullReceiver:
    """A receiver that wants nothing; base for those that want only some calls."""

    __slots__ = ()

    def data_received(self, data: memoryview) -> None:
        """Drop it."""

    def eof_received(self) -> None:
        """Ignore it."""

    def write_ready(self) -> None:
        """Ignore it."""

    def channel_closed(self, exc: Exception | None) -> None:
        """Ignore it."""
