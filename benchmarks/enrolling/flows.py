"""Connections that check every byte: an echo server, and a client whose every kilobyte must come back.

Sans everything but sockets and ``selectors``; ``traffic`` decides which are opened when.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ambient.engine.netns import listen_in, socket_in

PORT = 8080
MESSAGE_BYTES = 1024
READ_BYTES = 65536
# A connection that has not echoed for this long is lost, though nobody has said so. Picked: far above
# every pause of a busy machine, and of TCP's first retransmissions.
STALL_SECONDS = 20.0
# On a machine that is starved on purpose, where a proxy may wait as long for a CPU.
STARVED_STALL_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Flow:
    """From a pod's namespace to an address."""

    name: str
    netns: int
    address: str


def message(connection: int, number: int) -> bytes:
    """What a connection sends as its *number*-th: no two are alike, so a lost or doubled one shows."""
    head = connection.to_bytes(4, "big") + number.to_bytes(4, "big")
    return head * (MESSAGE_BYTES // len(head))


class Echo:
    """Sends back what it is sent, on every address of one pod."""

    def __init__(self, selector: selectors.BaseSelector, netns: int) -> None:
        self._selector = selector
        self._listener = listen_in(netns, PORT)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self, _events: int) -> None:
        with suppress(BlockingIOError):
            while True:
                sock, _ = self._listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _Echoed(self._selector, sock)


class _Echoed:
    """One accepted connection."""

    def __init__(self, selector: selectors.BaseSelector, sock: socket.socket) -> None:
        self._selector, self._sock = selector, sock
        selector.register(sock, selectors.EVENT_READ, self._ready)

    def _ready(self, _events: int) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
            if data:
                # A client sends the next kilobyte when the last came back: this always fits.
                self._sock.sendall(data)
                return
        except OSError:
            pass
        self._selector.unregister(self._sock)
        self._sock.close()


class Client:
    """One connection; says *messages* times a kilobyte, each after the echo of the one before.

    Attributes:
        failure: Why it ended before its time; "" while all is well.
        sent, received: Bytes.
        done: Ended as it should: everything came back, then the end of the stream.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        flow: Flow,
        number: int,
        on_end: Callable[[Client], None],
    ) -> None:
        self.flow = flow
        self.failure = ""
        self.sent = self.received = 0
        self.done = self.established = False
        self._heard = time.monotonic()
        self._number = number
        self._count = 0
        self.local = ""
        self._expected: deque[bytes] = deque()
        self._closing = False
        self._selector = selector
        self._on_end = on_end
        family = socket.AF_INET6 if ":" in flow.address else socket.AF_INET
        self._sock = socket_in(flow.netns, family)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(self._sock, selectors.EVENT_WRITE, self._connected)
        with suppress(BlockingIOError):
            self._sock.connect((flow.address, PORT))
        self.local = f"{self._sock.getsockname()[1]}"

    @property
    def over(self) -> bool:
        """Whether it has ended, well or not."""
        return self.done or bool(self.failure)

    @property
    def idle(self) -> bool:
        """Whether everything sent has come back."""
        return self.established and not self._expected

    @property
    def lost_bytes(self) -> int:
        """What was sent and never came back."""
        return self.sent - self.received

    @property
    def stage(self) -> str:
        """How far it came, for whoever looks for the reason of a failure."""
        if not self.established:
            return "not connected"
        return "closing" if self._closing else f"{self.received} of {self.sent} bytes back"

    def is_stalled(self, now: float, patience: float) -> bool:
        """Whether it has waited too long for the other end."""
        waiting = not self.idle or self._closing
        return waiting and not self.over and now - self._heard > patience

    def say(self) -> None:
        """Send the next kilobyte."""
        if self.over or self._closing:
            return
        self._heard = time.monotonic()
        data = message(self._number, self._count)
        self._count += 1
        self._expected.append(data)
        self.sent += len(data)
        try:
            self._sock.sendall(data)
        except OSError as exc:
            self.fail(repr(exc))

    def close(self) -> None:
        """Say goodbye; it is done when the other end has said so too."""
        if not self.over and not self._closing:
            self._closing = True
            self._heard = time.monotonic()
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError as exc:
                self.fail(repr(exc))

    def fail(self, why: str) -> None:
        """It is over."""
        if not self.over:
            self.failure = why
            self._end()

    def _connected(self, _events: int) -> None:
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.fail(repr(OSError(code, "connect")))
            return
        self.established = True
        self._selector.modify(self._sock, selectors.EVENT_READ, self._readable)
        self.say()

    def _readable(self, _events: int) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except OSError as exc:
            self.fail(repr(exc))
            return
        if data:
            self._compare(data)
        elif self._closing and not self._expected:
            self.done = True
            self._end()
        else:
            self.fail("closed by the other end")

    def _compare(self, data: bytes) -> None:
        while data and self._expected:
            wanted = self._expected[0]
            part, data = data[: len(wanted)], data[len(wanted) :]
            if not wanted.startswith(part):
                self.fail("other bytes came back than were sent")
                return
            self.received += len(part)
            if len(part) < len(wanted):
                self._expected[0] = wanted[len(part) :]
            else:
                self._expected.popleft()
        if data:
            self.fail("more bytes came back than were sent")

    def _end(self) -> None:
        self._selector.unregister(self._sock)
        self._sock.close()
        self._on_end(self)
