"""The load client: a process of its own that does one kind of load at a time, and times it.

    python -m benchmarks.bed.load      one JSON command a line in, one JSON result a line out

    {"do": "bulk", "door": ["127.1.1.1", 15001], "count": 8, "seconds": 1.0, "pids": [12, 13]}

Each result has ``seconds`` (the measured window), ``own_cpu`` (this process's share of it) and ``cpu`` (of
each of ``pids``, by number), so that whoever asked can tell whether the client was the bottleneck.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from ambient.engine.headroom import raise_file_limit
from benchmarks.bed.procfs import cpu_seconds

PING = b"p" * 64
ONCE = b"o" * 64
BLOCK = b"x" * (256 * 1024)
# Before the window opens: windows grow, tunnels are made, caches fill.
WARM_UP_SECONDS = 0.25
# Opening many tunnels at once would measure the listen queue.
OPENING_AT_ONCE = 64
PATIENCE = 60.0
# Processes that used less than this share of so long are done with what they had to do.
QUIET_SECONDS, QUIET_SHARE = 0.5, 0.05


class Window:
    """What happened between ``open`` and ``close``."""

    def __init__(self, pids: list[int]) -> None:
        self._pids = pids

    def open(self) -> float:
        """Start; returns the time."""
        self._cpu = {pid: cpu_seconds([pid]) for pid in self._pids}
        self._own = time.process_time()
        self._began = time.perf_counter()
        return self._began

    def close(self) -> dict[str, Any]:
        """Stop; returns the common fields of a result."""
        return {
            "seconds": time.perf_counter() - self._began,
            "own_cpu": time.process_time() - self._own,
            "cpu": {pid: cpu_seconds([pid]) - before for pid, before in self._cpu.items()},
        }


class Load:
    """Commands by name; idle tunnels stay open between two commands."""

    def __init__(self) -> None:
        self._idle: list[socket.socket] = []
        self._stalled: dict[int, socket.socket] = {}

    def bulk(self, door: tuple[str, int], count: int, seconds: float, pids: list[int]) -> dict[str, Any]:
        """One way, as fast as it goes, over *count* connections; counts what the sockets took."""
        poll = select.epoll()
        socks = {sock.fileno(): sock for sock in (_connected(door) for _ in range(count))}
        for fd in socks:
            poll.register(fd, select.EPOLLOUT)

        def drive(until: float) -> int:
            sent = 0
            while time.perf_counter() < until:
                for fd, _ in poll.poll(0.5):
                    sent += socks[fd].send(BLOCK)
            return sent

        window = Window(pids)
        drive(time.perf_counter() + WARM_UP_SECONDS)
        sent = drive(window.open() + seconds)
        result = {"bytes": sent, **window.close()}
        poll.close()
        for sock in socks.values():
            sock.close()
        return result

    def ping_pong(self, door: tuple[str, int], count: int, seconds: float, pids: list[int]) -> dict[str, Any]:
        """64 bytes there and back, a closed loop on each of *count* connections."""
        socks = {sock.fileno(): sock for sock in (_connected(door) for _ in range(count))}
        poll = select.epoll()
        for fd, sock in socks.items():
            sock.send(PING)
            poll.register(fd, select.EPOLLIN)
        buffer = bytearray(4096)

        def drive(until: float) -> int:
            trips = 0
            while time.perf_counter() < until:
                for fd, _ in poll.poll(0.5):
                    sock = socks[fd]
                    if sock.recv_into(buffer) != len(PING):
                        raise SystemExit("a ping came back in pieces")
                    sock.send(PING)
                    trips += 1
            return trips

        window = Window(pids)
        drive(time.perf_counter() + WARM_UP_SECONDS)
        trips = drive(window.open() + seconds)
        result = {"trips": trips, **window.close()}
        poll.close()
        for sock in socks.values():
            sock.close()
        return result

    def latency(self, door: tuple[str, int], count: int, seconds: float, pids: list[int]) -> dict[str, Any]:
        """One connection, one ping at a time; every round trip in microseconds."""
        sock = _connected(door)
        sock.setblocking(True)
        buffer, samples, clock = bytearray(4096), [], time.perf_counter
        window = Window(pids)
        until = clock() + WARM_UP_SECONDS
        while clock() < until:
            sock.send(PING)
            sock.recv_into(buffer)
        until = window.open() + seconds
        after = clock()
        while after < until:
            before = clock()
            sock.send(PING)
            sock.recv_into(buffer)
            after = clock()
            samples.append(after - before)
        result = {"samples_us": [round(sample * 1e6, 1) for sample in samples], **window.close()}
        sock.close()
        return result

    def connections(
        self, door: tuple[str, int], count: int, seconds: float, pids: list[int]
    ) -> dict[str, Any]:
        """New connections: connect, 64 bytes there and back, FIN from the application, FIN from us."""
        poll = select.epoll()
        socks: dict[int, socket.socket] = {}
        buffer = bytearray(4096)

        def begin() -> None:
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(door)
            socks[sock.fileno()] = sock
            poll.register(sock, select.EPOLLOUT)

        def serve(fd: int) -> bool:
            """Whether it has ended."""
            sock = socks[fd]
            if fd not in asked:
                sock.send(ONCE)
                asked.add(fd)
                poll.modify(fd, select.EPOLLIN)
                return False
            size = sock.recv_into(buffer)
            answered[fd] = answered.get(fd, 0) + size
            if size:
                return False
            if answered.pop(fd) != len(ONCE):
                raise SystemExit("an answer was cut")
            asked.discard(fd)
            poll.unregister(fd)
            socks.pop(fd).close()
            return True

        def drive(until: float) -> int:
            ended = 0
            while time.perf_counter() < until:
                for fd, _ in poll.poll(0.5):
                    if serve(fd):
                        ended += 1
                        begin()
            return ended

        asked: set[int] = set()
        answered: dict[int, int] = {}
        window = Window(pids)
        for _ in range(count):
            begin()
        drive(time.perf_counter() + WARM_UP_SECONDS)
        ended = drive(window.open() + seconds)
        result = {"connections": ended, **window.close()}
        for sock in socks.values():
            sock.close()
        poll.close()
        return result

    def stall(self, door: tuple[str, int], count: int, seconds: float, pids: list[int]) -> dict[str, Any]:
        """*count* connections whose application never reads, fed whatever they take; they stay open."""
        fresh = {sock.fileno(): sock for sock in (_connected(door) for _ in range(count))}
        for sock in fresh.values():
            # Our own queue, which is not the mesh's: 1,000 of 4 MiB would exhaust the machine's tcp_mem.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
            sock.send(b"s")
        self._stalled |= fresh
        return self.feed(door, count, seconds, pids)

    def feed(self, door: tuple[str, int], count: int, seconds: float, pids: list[int]) -> dict[str, Any]:
        """Go on feeding them."""
        window = Window(pids)
        poll = select.epoll()
        for fd in self._stalled:
            poll.register(fd, select.EPOLLOUT)
        sent, until = 0, window.open() + seconds
        while time.perf_counter() < until:
            for fd, _ in poll.poll(0.1):
                try:
                    sent += self._stalled[fd].send(BLOCK)
                except BlockingIOError:
                    continue
        poll.close()
        return {"bytes": sent, **window.close()}

    def unstall(self, door: tuple[str, int], count: int, seconds: float, pids: list[int]) -> dict[str, Any]:
        """Close them all, and return when *pids* have nothing left to do about it."""
        window = Window(pids)
        window.open()
        for sock in self._stalled.values():
            sock.close()
        self._stalled.clear()
        ends = time.monotonic() + PATIENCE
        busy = True
        while busy and time.monotonic() < ends:
            before = cpu_seconds(pids)
            time.sleep(QUIET_SECONDS)
            busy = cpu_seconds(pids) - before > QUIET_SHARE * QUIET_SECONDS
        return window.close()

    def open_idle(self, door: tuple[str, int], count: int, seconds: float, pids: list[int]) -> dict[str, Any]:
        """*count* more tunnels that have carried one ping and then carry nothing."""
        window = Window(pids)
        window.open()
        for start in range(0, count, OPENING_AT_ONCE):
            fresh = [_connected(door) for _ in range(min(OPENING_AT_ONCE, count - start))]
            for sock in fresh:
                sock.setblocking(True)
                sock.settimeout(PATIENCE)
                sock.send(PING)
            for sock in fresh:
                if sock.recv(4096) != PING:
                    raise SystemExit("a tunnel was not opened")
            self._idle += fresh
        return window.close()

    def close_idle(
        self, door: tuple[str, int], count: int, seconds: float, pids: list[int]
    ) -> dict[str, Any]:
        """Close them all."""
        window = Window(pids)
        window.open()
        for sock in self._idle:
            sock.close()
        self._idle.clear()
        return window.close()


def _connected(door: tuple[str, int]) -> socket.socket:
    sock = socket.create_connection(door, timeout=PATIENCE)
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def main() -> None:
    """Obey until the end of the input."""
    raise_file_limit()
    load = Load()
    for line in sys.stdin:
        command = json.loads(line)
        do: Callable[..., dict[str, Any]] = getattr(load, command.pop("do"))
        door = tuple(command.pop("door"))
        print(json.dumps(do(door, **command)), flush=True)


if __name__ == "__main__":
    main()
