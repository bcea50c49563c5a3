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

import _socket
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import islice
from typing import Any, Protocol, TypeAlias

from ambient.engine.netns import plain_address
from ambient.engine.reactor import HANG_UP, IN, OUT, Reactor, Timer

Data: TypeAlias = bytes | bytearray | memoryview

# ``writable`` turns False above this many bytes not yet taken by the kernel; a fast writer may
# overshoot by one read. Picked, not measured.
WRITE_HIGH_BYTES = 256 * 1024
# What the kernel takes beyond the peer's window. Without a bound it takes 4 MiB for each stalled reader, and
# 1,000 of them exhaust tcp_mem: then everybody's connections stall (measured).
NOT_SENT_BYTES = 256 * 1024
# Slices per sendmsg; the kernel's bound is IOV_MAX (1024).
MAX_SLICES = 64
# After ``close`` the peer has this long to end its direction: closing over unread bytes would send a
# reset that can overtake what we sent. Picked, not measured.
LINGER_SECONDS = 1.0
# What a pump returns when it may not read now.
PUMP_BLOCKED = -1

# Stands for an empty queue: an idle connection has none of its own (one is 0.6 KiB). Never appended to.
NOTHING: deque[Any] = deque()

# ``socket.socket.close`` less two calls of its own, which count files that were made of it: we make none.
_close = _socket.socket.close

# struct linger (socket(7)): on, for no seconds; and off.
RESET_ON_CLOSE, _FINISH_ON_CLOSE = struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)


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

    def ending(self) -> bool:
        """Whether both directions have ended and all is sent: it is about to close itself."""
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


class PromptReceiver(NullReceiver):
    """A receiver that hears of the end the moment it comes, also from within a call to its channel.

    The others are called when what is running has returned, which costs about as much as the rest of an
    ending. What a prompt one does then must be in order at any time, as closing its other channel is.
    """

    __slots__ = ()


def tell_closed(reactor: Reactor, receiver: Receiver, exc: Exception | None) -> None:
    """Call *receiver*'s ``channel_closed``; its exception is recorded, as there is nothing left to close."""
    if not isinstance(receiver, PromptReceiver):
        reactor.call_soon(partial(receiver.channel_closed, exc), _recorded)
        return
    try:
        receiver.channel_closed(exc)
    except Exception as failure:
        reactor.record_failure(failure)


class SocketChannel:
    """A ``Channel`` over a connected, non-blocking stream socket, which becomes ours to close.

    Args:
        resets: The socket was told already what ``reset_unless_finished`` tells it: its ``Listener`` was.

    Attributes:
        full: Not ``writable``, for those who ask for every message.
    """

    __slots__ = (
        "_closing",
        "_dirty",
        "_eof_in",
        "_eof_out",
        "_eof_wanted",
        "_fd",
        "_linger",
        "_local",
        "_mask",
        "_out",
        "_out_bytes",
        "_parked",
        "_paused",
        "_peer",
        "_pump",
        "_reactor",
        "_reason",
        "_receiver",
        "_registered",
        "_resets",
        "_sock",
        "bytes_in",
        "bytes_out",
        "full",
    )

    _high = WRITE_HIGH_BYTES

    def __init__(self, reactor: Reactor, sock: socket.socket, *, resets: bool = False) -> None:
        self._reactor = reactor
        self._sock: socket.socket | None = sock
        self._fd = sock.fileno()
        self._receiver: Receiver | None = None
        self._out = NOTHING
        self._out_bytes = 0
        self._mask = 0
        self._registered = False
        self._parked = False  # Hung up while paused: out of epoll, or it would spin.
        self._resets = resets  # Closing it, by whomever, sends a reset.
        self._paused = False
        self.full = False
        self._dirty = False
        self._eof_in = False
        self._eof_wanted = False
        self._eof_out = False
        self._closing = False
        self._linger: Timer | None = None
        self._pump: Callable[[socket.socket], int] | None = None
        self._reason: Exception | None = None
        self._peer: tuple[str, int] | None = None
        self._local: tuple[str, int] | None = None
        self.bytes_in = 0
        self.bytes_out = 0

    def __repr__(self) -> str:
        state = "closed" if self._sock is None else f"fd {self._fd}"
        return f"<{type(self).__name__} {state}, {self.bytes_in} in, {self.bytes_out} out>"

    @property
    def peer_address(self) -> tuple[str, int]:
        """(ip, port) of the other end; ("", 0) if it was never asked for while open."""
        if self._peer is None:
            self._peer = _address(self._sock, "getpeername")
        return self._peer

    @property
    def local_address(self) -> tuple[str, int]:
        """(ip, port) of this end; ("", 0) if it was never asked for while open."""
        if self._local is None:
            self._local = _address(self._sock, "getsockname")
        return self._local

    @property
    def closed(self) -> bool:
        """Whether the socket is closed; ``channel_closed`` may still be due."""
        return self._sock is None

    @property
    def writable(self) -> bool:
        """False while more than ``WRITE_HIGH_BYTES`` wait for the kernel."""
        return not self.full

    def ending(self) -> bool:
        """Whether both directions have ended and all is sent."""
        return self._eof_in and self._eof_out

    def start(self, receiver: Receiver) -> None:
        """Deliver to *receiver* from now on."""
        if self._sock is None:
            self._reactor.call_soon(partial(receiver.channel_closed, self._reason), _recorded)
        else:
            self._receiver = receiver
            self._update()

    def detach(self) -> socket.socket:
        """Give the socket away; the channel is over without a word. Only before ``start``."""
        sock = self._sock
        if sock is None or self._receiver is not None or self._out:
            raise RuntimeError("a channel in use cannot be detached")
        self._unregister()
        self._sock = None
        return sock

    def write(self, data: Data) -> None:
        """Send all of *data*, now or later."""
        size = len(data)
        if self._sock is None or self._eof_wanted or not size:
            return
        self.bytes_out += size
        if isinstance(data, bytes):
            # Gathered: what one batch writes leaves in one packet.
            self._queue(data, size)
            self._mark_dirty()
        elif self._out:
            self._queue(bytes(data), size)
        else:
            sent = self._send([data])
            if sent < size:
                self._queue(bytes(data[sent:]), size - sent)
                self._update()

    def write_parts(self, parts: list[memoryview], total: int) -> None:
        """``write`` of several slices with one system call."""
        sock = self._sock
        if self._out or sock is None or self._eof_wanted:
            for part in parts:
                self.write(part)
            self.full = self.full or bool(self._out)
            return
        self.bytes_out += total
        try:
            sent = sock.send(parts[0]) if len(parts) == 1 else sock.sendmsg(parts[:MAX_SLICES])
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._finish(exc)
            return
        if sent < total:
            for part in parts:
                if sent < len(part):
                    self._queue(bytes(part[sent:]), len(part) - sent)
                sent = max(0, sent - len(part))
            self.full = True  # Whoever fills a queue gives no credit until it is taken.
            self._update()

    def write_part(self, part: memoryview, size: int) -> None:
        """``write_parts`` of one slice."""
        sock = self._sock
        if self._out or sock is None or self._eof_wanted:
            self.write_parts([part], size)
            return
        self.bytes_out += size
        try:
            sent = sock.send(part)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._finish(exc)
            return
        if sent < size:
            self._queue(bytes(part[sent:]), size - sent)
            self.full = True
            self._update()

    def write_eof(self) -> None:
        """Send an end of file after what was written."""
        if self._eof_wanted or self._sock is None:
            return
        self._eof_wanted = True
        if self._out_bytes:
            self._mark_dirty()
        elif self._eof_in:
            self._eof_out = True  # Both directions have ended: closing it says so too.
            self._finish(None)
        else:
            self._shut()

    def pause(self) -> None:
        """Deliver nothing until ``resume``."""
        self._paused = True
        self._update()

    def resume(self) -> None:
        """Undo ``pause``."""
        if self._paused:
            self._paused = False
            self._parked = False
            self._update()

    def close(self) -> None:
        """Flush, say goodbye, wait a moment for the peer's, close."""
        if self._closing or self._sock is None:
            return
        self._closing = True
        self.write_eof()
        if self._sock is None:
            return
        self._pump = None
        self._linger = self._reactor.call_later(LINGER_SECONDS, self._lingered, self.crashed)
        self.resume()

    def abort(self) -> None:
        """End it now, with a reset."""
        self.crashed(None)

    def crashed(self, exc: Exception | None) -> None:
        """``abort`` with a reason for ``channel_closed``; the reactor calls it too."""
        if self._sock is not None:
            self.reset_unless_finished()
            self._resets = False  # Nothing is to be taken back.
            self._finish(exc)

    def reset_unless_finished(self) -> None:
        """Until it ends well, whoever closes the socket resets it, the kernel too when this process dies.

        Or the peer would see an end of file, and take half of an answer for all of it.
        """
        if self._resets or self._sock is None:
            return
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            self._resets = True
        except OSError:
            pass  # It is only about how we close.

    def set_pump(self, pump: Callable[[socket.socket], int]) -> None:
        """Let *pump* read from the socket in place of ``data_received``: the relay's fast path.

        It returns the number of bytes it read and sent on, 0 at the end of file, or ``PUMP_BLOCKED``,
        which pauses the channel.
        """
        self._pump = pump

    def bound_unsent(self) -> None:
        """Let the kernel hold no more than ``NOT_SENT_BYTES`` for a peer that does not read."""
        if self._sock is not None:
            try:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, NOT_SENT_BYTES)
            except OSError:
                pass  # Not TCP.

    def flush(self) -> None:
        """Send what was gathered; the reactor calls it."""
        self._dirty = False
        if self._sock is not None:
            self._write_out()

    # Events ------------------------------------------------------------------------------------

    def on_event(self, events: int) -> None:
        """The socket is ready; the reactor calls it."""
        if events == IN and self._pump is not None and self._mask & IN:
            # The usual event of a relay's plain side.
            assert self._sock is not None
            try:
                size = self._pump(self._sock)
            except BlockingIOError:
                return
            except OSError as exc:
                self._finish(exc)
                return
            if size > 0:
                self.bytes_in += size
            elif size == 0:
                self._ended_in()
            else:
                self.pause()
            return
        if events & OUT:
            self._write_out()
        if events & (IN | HANG_UP) and self._sock is not None:
            if self._mask & IN:
                self._readable()
            else:
                self._hung_up()

    def _readable(self) -> None:
        sock = self._sock
        assert sock is not None
        buffer = self._reactor.read_buffer
        try:
            size = self._pump(sock) if self._pump is not None else sock.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError as exc:
            self._finish(exc)
            return
        if size > 0:
            self.bytes_in += size
            if self._pump is None and not self._closing:
                self._receiver_or_fail().data_received(buffer[:size])
        elif size == 0:
            self._ended_in()
        else:
            self.pause()

    def _ended_in(self) -> None:
        self._eof_in = True
        if not self._closing:
            (self._receiver or self._receiver_or_fail()).eof_received()
        if self._sock is None:
            return
        if self._eof_out:
            self._finish(None)  # The other direction has ended: there is nothing left to register for.
        else:
            self._update()

    def _hung_up(self) -> None:
        """An error, or a hang-up that is not to be read now."""
        assert self._sock is not None
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self._finish(OSError(code, os.strerror(code)))
        elif self._registered:
            self._unregister()
            self._parked = True

    def _write_out(self) -> None:
        out = self._out
        while out:
            sent = self._send(list(islice(out, MAX_SLICES)))
            if self._sock is None:
                return
            if not sent:
                break
            self._out_bytes -= sent
            while out and sent >= len(out[0]):
                sent -= len(out.popleft())
            if sent:
                out[0] = memoryview(out[0])[sent:]
        if not out:
            self._out = NOTHING
        self._drained()

    def _drained(self) -> None:
        self._update()
        backlog = self._backlog()
        if not backlog and self._eof_wanted and not self._eof_out:
            self._shut()
            if self._eof_in:
                self._finish(None)
            if self._sock is None:
                return
        if self.full and backlog <= self._high // 4:
            self.full = False
            if self._receiver is not None and not self._closing:
                self._receiver.write_ready()

    def _send(self, slices: list[Any]) -> int:
        """What the kernel took; an error ends the channel."""
        assert self._sock is not None
        try:
            return self._sock.send(slices[0]) if len(slices) == 1 else self._sock.sendmsg(slices[:MAX_SLICES])
        except BlockingIOError:
            return 0
        except OSError as exc:
            self._finish(exc)
            return 0

    def _queue(self, data: bytes, size: int) -> None:
        if self._sock is None:
            return
        if self._out is NOTHING:
            self._out = deque()
        self._out.append(data)
        self._out_bytes += size
        if self._out_bytes > self._high:
            self.full = True

    def _backlog(self) -> int:
        """Bytes written here that the kernel has not taken."""
        return self._out_bytes

    def _shut(self) -> None:
        self._eof_out = True  # All was sent, and nothing will be.
        assert self._sock is not None
        if self._eof_in:
            return  # Both directions have ended: closing it says so too.
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as exc:
            self._finish(exc)

    def _mark_dirty(self) -> None:
        if not self._dirty and not self._mask & OUT:
            self._dirty = True
            self._reactor.mark_dirty(self)

    # Registration and the end --------------------------------------------------------------------

    def _update(self) -> None:
        if self._sock is None or self._parked:
            return
        reading = self._receiver is not None or self._closing
        mask = IN if reading and not self._paused and not self._eof_in else 0
        if self._out and not self._dirty:
            mask |= OUT
        if not self._registered:
            if mask or reading:
                self._reactor.attach(self._fd, mask, self)
                self._registered = True
        elif mask != self._mask:
            self._reactor.modify(self._fd, mask)
        self._mask = mask

    def _unregister(self) -> None:
        if self._registered:
            self._reactor.remove(self._fd)
            self._registered = False

    def _lingered(self) -> None:
        if self._backlog():
            self.crashed(TimeoutError("the peer does not read what is left"))
        else:
            self._finish(None)

    def _finish(self, exc: Exception | None) -> None:
        sock, self._sock = self._sock, None
        if sock is None:
            return
        if self._registered:
            self._reactor.closing(self._fd)
            self._registered = False
        if exc is None:
            if self._resets:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _FINISH_ON_CLOSE)
        elif isinstance(exc, OSError):
            exc.__traceback__ = None  # It leads to us, and no bug is to be found with it.
        _close(sock)
        self._out = NOTHING
        self._out_bytes = 0
        self._reason = exc
        self._pump = None
        if self._linger is not None:
            self._linger.cancel()
        receiver, self._receiver = self._receiver, None  # Or the two would keep each other alive.
        if receiver is not None:
            tell_closed(self._reactor, receiver, exc)

    def _receiver_or_fail(self) -> Receiver:
        if self._receiver is None:
            raise RuntimeError("data before start")
        return self._receiver


def _recorded(exc: Exception) -> None:
    """For callbacks after the end: the reactor has recorded *exc*, nothing is left to close."""


def _address(sock: socket.socket | None, name: str) -> tuple[str, int]:
    if sock is None:
        return "", 0
    try:
        address = getattr(sock, name)()
    except OSError:
        return "", 0
    return plain_address(address) if isinstance(address, tuple) else ("", 0)
