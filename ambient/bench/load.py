"""An open-loop load generator: requests leave when they are due, whatever the answers do.

Floor 5; run inside the client pod as ``python -m ambient.bench.load``.

Theory of operation
===================

Arrivals are a Poisson process given its count: so many uniform times in the span, sorted, from a seed.
Every mode of a comparison therefore gets the same arrivals, and exactly rate x duration of them. A timerfd
wakes for each one. A due request takes an idle keep-alive connection, or waits for one; its latency counts
from the moment it was *due*, so a stalled server cannot hide the requests it kept from being sent
(coordinated omission). How late the generator itself woke is kept apart, as schedule lag.

Everything that costs is kept out of the loop: the request is one constant byte string, samples are appended
to lists, the collector is off. Rejected: trio (1 ms timers), a thread per connection (the lock), wrk (closed
loop).

    harness                                this program
                                   <--     {"event": "ready"}       connected, warmed up
      "go\\n"                       -->                              with --wait-go
                                   <--     {"event": "result", ...}
"""

from __future__ import annotations

import gc
import json
import random
import select
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ambient.bench.response import ResponseReader
from ambient.bench.timer import Timer
from ambient.errors import AmbientError, ConfigError, RemoteProtocolError

MARKER_HEADER = "X-Ambient-Marker"
READ_BYTES = 256 * 1024
# What is unanswered this long after the last arrival has failed; picked, not measured.
GRACE_SECONDS = 5.0
_MAX_EVENTS = 64
_NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send: *rate* a second for *duration* seconds over *connections*."""

    url: str
    rate: float
    duration: float
    connections: int
    seed: int
    marker: str = ""

    def __post_init__(self) -> None:
        if self.rate <= 0 or self.duration <= 0 or self.connections < 1:
            raise ConfigError("rate, duration and connections must be above zero")


def arrivals(rate: float, duration: float, seed: int) -> list[float]:
    """Seconds from the start at which requests are due, ascending: rate x duration of them."""
    chance = random.Random(seed)
    return sorted(chance.random() * duration for _ in range(round(rate * duration)))


def request_bytes(url: str, marker: str) -> tuple[str, int, bytes]:
    """Return host, port and the one request that is sent again and again.

    Raises:
        ConfigError: *url* is not ``http://host[:port]/path``.
    """
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise ConfigError(f"not an http:// URL: {url!r}")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"GET {path} HTTP/1.1", f"Host: {parts.netloc}", "User-Agent: ambient-bench", "Accept: */*"]
    lines += [f"{MARKER_HEADER}: {marker}"] if marker else []
    return parts.hostname, parts.port or 80, ("\r\n".join(lines) + "\r\n\r\n").encode()


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
        self._timer = Timer()
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


def resolve(host: str, port: int) -> tuple[int, Any]:
    """Family and address to dial; the mesh's names resolve to its virtual addresses.

    Raises:
        ConfigError: nobody knows the name.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as exc:
        raise ConfigError(f"{host}: {exc.strerror}") from exc
    return found[0], found[4]


def drive(load: Load, warmup: float, ready: Callable[[], None]) -> dict[str, Any]:
    """Connect, warm up, call *ready*, run the measured span, and return what happened."""
    host, port, request = request_bytes(load.url, load.marker)
    family, address = resolve(host, port)
    generator = Generator(address, family, request, load.connections)
    try:
        if warmup > 0:
            generator.run(arrivals(load.rate, warmup, load.seed + 1))
        ready()
        before, cpu = generator.reconnects, time.process_time()
        schedule = arrivals(load.rate, load.duration, load.seed)
        seconds = generator.run(schedule)
        spent = time.process_time() - cpu
        return _result(generator, len(schedule), seconds, load.duration, spent, generator.reconnects - before)
    finally:
        generator.close()


def _result(
    generator: Generator, sent: int, seconds: float, duration: float, cpu: float, reconnects: int
) -> dict[str, Any]:
    ok = len(generator.latencies_ns)
    return {
        "sent": sent,
        "ok": ok,
        "failed": sent - ok,
        "errors": dict(generator.errors),
        "achieved_rps": ok / max(seconds, duration),
        "seconds": seconds,
        "cpu_seconds": cpu,
        "reconnects": reconnects,
        "body_bytes": sorted(generator.body_bytes)[:8],
        "latencies_us": [ns // 1000 for ns in generator.latencies_ns],
        "lags_us": [ns // 1000 for ns in generator.lags_ns],
    }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; ``--json`` prints every sample, else a summary for people."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m ambient.bench.load")
    parser.add_argument("--target", required=True, help="http://host:port/path")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--duration", type=float, default=10.0)
    parser.add_argument("--warmup", type=float, default=0.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--marker", default="")
    parser.add_argument("--wait-go", action="store_true", help="after 'ready', wait for a line on stdin")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    try:
        load = Load(
            url=args.target, rate=args.rate, duration=args.duration,
            connections=args.connections, seed=args.seed, marker=args.marker,
        )  # fmt: skip
        result = drive(load, args.warmup, lambda: _ready(args.json, args.wait_go))
    except (AmbientError, OSError) as exc:
        print(f"Error: {args.target}: {exc}", file=sys.stderr)
        return 1
    print(json.dumps({"event": "result", **result}) if args.json else summary(result), flush=True)
    return 0


def _ready(as_json: bool, wait: bool) -> None:
    if as_json:
        print(json.dumps({"event": "ready"}), flush=True)
    if wait and not sys.stdin.readline():
        raise ConfigError("the harness went away")


def summary(result: dict[str, Any]) -> str:
    """Two lines for people."""
    from ambient.bench.statistics import percentile

    ordered, lags = sorted(result["latencies_us"]), sorted(result["lags_us"])
    shown = ", ".join(f"p{share * 100:g} {percentile(ordered, share):.0f}" for share in (0.5, 0.9, 0.99))
    first = f"{result['ok']} of {result['sent']} ok, {result['achieved_rps']:.1f}/s; latency us: {shown}"
    return f"{first}\nschedule lag p99 {percentile(lags, 0.99):.0f} us; errors: {result['errors'] or 'none'}"


if __name__ == "__main__":
    sys.exit(main())
