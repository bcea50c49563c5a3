"""A client that opens connections at a steady rate and holds others open, and tells how each went.

    python benchmarks/knock.py serve PORT
    python benchmarks/knock.py knock HOST PORT [--rate 200] [--seconds 10] [--bytes 64] [--long 500]

``serve`` echoes. ``knock`` first opens the long streams and says "ready" on standard output, then opens
*rate* connections a second at their scheduled times, whether or not the last ones have been served; each
sends some bytes of its own, wants exactly them back, and closes. A long stream sends a kilobyte of its own
every few seconds and compares every byte. At its end it prints one JSON document; times are seconds of the
machine's monotonic clock, so that they can be laid beside what others did meanwhile.

Bounded: it ends by itself, and a connection that is not served within its patience counts as failed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from typing import Any

import trio

PING = b"p" * 64
BLOCK = hashlib.sha256().digest_size
# Longer than any stall that would be worth a figure.
PATIENCE_SECONDS = 20.0
# Long streams that are being opened at once.
OPENING = 20


async def serve(port: int) -> None:
    """Echo on all addresses until killed."""

    async def echo(stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                await stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # The client's record says so; nothing is to be done here.

    await trio.serve_tcp(echo, port, backlog=4096)


_FAILURES = (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError)


class Knocking:
    """One run."""

    def __init__(self, host: str, port: int, size: int) -> None:
        self.host, self.port, self.size = host, port, size
        self.short: list[tuple[float, float, str]] = []
        self.failures: list[tuple[float, str]] = []
        self.messages = 0
        self.open = 0

    async def run(self, rate: float, seconds: float, long: int, every: float) -> dict[str, Any]:
        """Everything; returns what is printed."""
        async with trio.open_nursery() as streams:
            limit = trio.CapacityLimiter(OPENING)
            async with trio.open_nursery() as opening:
                for number in range(long):
                    opening.start_soon(self._open_long, streams, limit, number, every)
            print("ready", flush=True)
            async with trio.open_nursery() as knocks:
                began = time.monotonic()
                for number in range(int(rate * seconds)):
                    await trio.sleep(max(0.0, began + number / rate - time.monotonic()))
                    knocks.start_soon(self._knock, number, began + number / rate)
            streams.cancel_scope.cancel()
        return {
            "short": self.short,
            "long": {
                "streams": long,
                "alive": self.open,
                "messages": self.messages,
                "failures": self.failures,
            },
        }

    async def _knock(self, number: int, scheduled: float) -> None:
        outcome = ""
        message = hashlib.sha256(f"short {number}".encode()).digest() * (-(-self.size // BLOCK))
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                stream = await self._connect()
                async with stream, trio.open_nursery() as nursery:
                    nursery.start_soon(stream.send_all, message)
                    await _expect(stream, message)
        except* _FAILURES as group:
            outcome = _reason(group.exceptions[0])
        self.short.append((scheduled, time.monotonic() - scheduled, outcome))

    async def _open_long(
        self, streams: trio.Nursery, limit: trio.CapacityLimiter, number: int, every: float
    ) -> None:
        async with limit:
            try:
                with trio.fail_after(PATIENCE_SECONDS):
                    stream = await self._connect()
                    await stream.send_all(PING)
                    await _expect(stream, PING)
            except _FAILURES as exc:
                self.failures.append((time.monotonic(), _reason(exc)))
                return
        self.open += 1
        streams.start_soon(self._talk, stream, number, every)

    async def _talk(self, stream: trio.SocketStream, number: int, every: float) -> None:
        async with stream:
            try:
                await trio.sleep(every * (number % 100) / 100)  # Not all at once.
                for turn in range(sys.maxsize):
                    message = hashlib.sha256(f"{number}/{turn}".encode()).digest() * 32
                    await stream.send_all(message)
                    with trio.fail_after(PATIENCE_SECONDS):
                        await _expect(stream, message)
                    self.messages += 1
                    await trio.sleep(every)
            except _FAILURES as exc:
                self.open -= 1
                self.failures.append((time.monotonic(), _reason(exc)))

    async def _connect(self) -> trio.SocketStream:
        sock = trio.socket.socket(trio.socket.AF_INET)
        try:
            await sock.connect((self.host, self.port))
        except BaseException:
            sock.close()
            raise
        return trio.SocketStream(sock)


async def _expect(stream: trio.SocketStream, wanted: bytes) -> None:
    got = b""
    while len(got) < len(wanted):
        data = await stream.receive_some(65536)
        if not data:
            raise ValueError("closed")
        got += data
    if got != wanted:
        raise ValueError("other bytes")


def _reason(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    cause = exc.__cause__ if isinstance(exc.__cause__, OSError) else exc
    return str(exc) if isinstance(exc, ValueError) else type(cause).__name__


def main() -> None:
    """Be the server or the client."""
    parser = argparse.ArgumentParser(description="see the top of the file")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve")
    serving.add_argument("port", type=int)
    knocking = commands.add_parser("knock")
    knocking.add_argument("host")
    knocking.add_argument("port", type=int)
    knocking.add_argument("--rate", type=float, default=200.0)
    knocking.add_argument("--seconds", type=float, default=10.0)
    knocking.add_argument("--bytes", type=int, default=64)
    knocking.add_argument("--long", type=int, default=0)
    knocking.add_argument("--every", type=float, default=2.0)
    options = parser.parse_args()
    if options.command == "serve":
        trio.run(serve, options.port)
        return
    run = Knocking(options.host, options.port, options.bytes)
    print(json.dumps(trio.run(run.run, options.rate, options.seconds, options.long, options.every)))


if __name__ == "__main__":
    main()
