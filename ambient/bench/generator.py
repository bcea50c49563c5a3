"""What sends: keep-alive connections, a schedule, and one loop on epoll and a timerfd.

Floor 5. The theory is told in ``ambient.bench.load``, which this serves.
"""

from __future__ import annotations

import gc
import select
import socket
import time
from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from ambient.bench.response import ResponseReader
from ambient.engine.alarm import Alarm
from ambient.errors import RemoteProtocolError

READ_BYTES = 256 * 1024
# What is unanswered this long after the last arrival has failed; picked, not measured.
GRACE_SECONDS = 5.0
_MAX_EVENTS = 64
_NS = 1_000_000_000


class Connection:
    """One keep-alive connection and the request it carries, if any."""

    def __init__(self, address: Any, family: int) -> None:
        self._address, self._family = address, family
        self.sock = self._open()
        self.reader = ResponseReader()
        self.due_ns = 0

    def _open(self) -> socket.socket:
        sock = socket.socket(self._family, socket.SOCK_STREAM)
        sock.settimeout(GRACE_SECONDS)
        try:
            sock.connect(self._address)
        except OSError:
            sock.close()
            raise
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        return sock

    def reopen(self) -> None:
        """Replace a connection that ended."""
        self.sock.close()
        self.sock = self._open()
        self.reader = ResponseReader()


class Generator:
    """Drives one load; ``run`` may be called again (warm-up, then the measured span)."""

    def __init__(self, address: Any, family: int, request: bytes, connections: int) -> None:
        self._request = request
        self._epoll = select.epoll()
        self._timer = Alarm()
        self._epoll.register(self._timer.fd, select.EPOLLIN)
        self._by_fd: dict[int, Connection] = {}
        self._idle: deque[Connection] = deque()
        self._queue: deque[int] = deque()
        self.reconnects = 0
        for _ in range(connections):
            self._adopt(Connection(address, family))
        self._reset()

    def _adopt(self, connection: Connection) -> None:
        self._by_fd[connection.sock.fileno()] = connection
        self._epoll.register(connection.sock.fileno(), select.EPOLLIN)
        self._idle.append(connection)

    def _reset(self) -> None:
        self.latencies_ns: list[int] = []
        self.lags_ns: list[int] = []
        self.errors: Counter[str] = Counter()
        self.body_bytes: set[int] = set()
        self._queue.clear()
        self._under_way = 0
        self._last_sent_ns = time.monotonic_ns()

    def close(self) -> None:
        """Close every descriptor."""
        for connection in self._by_fd.values():
            connection.sock.close()
        self._timer.close()
        self._epoll.close()

    def run(self, schedule: Sequence[float]) -> float:
        """Send everything in *schedule* and wait for the answers; return the seconds until the last was sent.

        Not until the last answer: a short span would look slow for the sake of one slow answer at its end.
        A mesh that falls behind makes requests wait for a connection, which this does show.
        """
        self._reset()
        start = time.monotonic_ns()
        due = [start + int(at * _NS) for at in schedule]
        gc.disable()
        try:
            self._drive(due)
        finally:
            gc.enable()
        self._give_up()
        return (self._last_sent_ns - start) / _NS

    def _drive(self, due: Sequence[int]) -> None:
        position, count = 0, len(due)
        last_call = (due[-1] if due else time.monotonic_ns()) + int(GRACE_SECONDS * _NS)
        timer_fd = self._timer.fd
        if due:
            self._timer.set_at(due[0])
        while position < count or self._under_way or self._queue:
            if time.monotonic_ns() > last_call:
                return
            for fd, _events in self._epoll.poll(0.5, _MAX_EVENTS):
                if fd == timer_fd:
                    position = self._send_due(due, position)
                else:
                    self._receive(self._by_fd[fd])

    def _send_due(self, due: Sequence[int], position: int) -> int:
        self._timer.clear()
        now = time.monotonic_ns()
        while position < len(due) and due[position] <= now:
            self.lags_ns.append(now - due[position])
            self._queue.append(due[position])
            position += 1
        while self._queue and self._idle:
            self._send(self._idle.popleft(), self._queue.popleft())
        if position < len(due):
            self._timer.set_at(due[position])
        return position

    def _send(self, connection: Connection, due_ns: int) -> None:
        connection.due_ns = due_ns
        self._under_way += 1
        self._last_sent_ns = time.monotonic_ns()
        try:
            whole = connection.sock.send(self._request) == len(self._request)
        except OSError as exc:
            self._fail(connection, exc.strerror or str(exc))
            return
        if not whole:
            self._fail(connection, "the socket took half a request")

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.sock.recv(READ_BYTES)
            if not data:
                raise ConnectionResetError(0, "connection closed")
            done = connection.reader.feed(data)
        except BlockingIOError:
            return
        except (OSError, RemoteProtocolError) as exc:
            self._fail(connection, getattr(exc, "strerror", None) or str(exc))
            return
        if done:
            self._complete(connection)

    def _complete(self, connection: Connection) -> None:
        if not connection.due_ns:
            self._fail(connection, "an answer that nobody asked for")
            return
        self._under_way -= 1
        if connection.reader.status == 200:
            self.latencies_ns.append(time.monotonic_ns() - connection.due_ns)
            self.body_bytes.add(connection.reader.body_bytes)
        else:
            self.errors[f"status {connection.reader.status}"] += 1
        connection.due_ns = 0
        if connection.reader.keep_alive:
            self._next(connection)
        else:
            self._replace(connection)

    def _next(self, connection: Connection) -> None:
        if self._queue:
            self._send(connection, self._queue.popleft())
        else:
            self._idle.append(connection)

    def _fail(self, connection: Connection, reason: str) -> None:
        """Count the request that was under way, if any, and replace the connection."""
        if connection.due_ns:
            self.errors[reason] += 1
            self._under_way -= 1
            connection.due_ns = 0
        self._replace(connection)

    def _replace(self, connection: Connection) -> None:
        self.reconnects += 1
        self._by_fd.pop(connection.sock.fileno(), None)
        if connection in self._idle:
            self._idle.remove(connection)
        try:
            connection.reopen()
        except OSError as exc:
            # One connection fewer; with none left, the rest of the schedule fails as unanswered.
            self.errors[f"reconnect: {exc.strerror or exc}"] += 1
            return
        self._adopt(connection)

    def _give_up(self) -> None:
        """What is still unanswered has failed, and its connection is of no more use."""
        self.errors["not sent in time"] += len(self._queue)
        for connection in list(self._by_fd.values()):
            if connection.due_ns:
                self._fail(connection, "not answered in time")
        self.errors += Counter()  # Drops zero counts.
