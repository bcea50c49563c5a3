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

import json
import random
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ambient.bench.generator import Generator
from ambient.errors import AmbientError, ConfigError

MARKER_HEADER = "X-Ambient-Marker"


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
