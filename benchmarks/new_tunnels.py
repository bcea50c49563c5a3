"""CPU time of a new tunnel at each end, ours beside Envoy's: what ``tunnel.py`` cannot say on a busy machine.

    python benchmarks/new_tunnels.py [--rounds N] [--seconds S]

A rate depends on who else wants the CPU; the CPU time of the proxies does so much less.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.bed.bench import Bench  # noqa: E402 - the path comes first.
from benchmarks.bed.measure import TUNNELS_AT_ONCE  # noqa: E402
from benchmarks.bed.proxies import Envoy, Ours, Pair  # noqa: E402


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    with Bench() as bench:
        pairs = [bench.pair(kind) for kind in (Ours, Envoy)]
        found: dict[str, list[tuple[float, float, float]]] = {pair.name: [] for pair in pairs}
        for pair in pairs:
            _cost(bench, pair, 0.3)  # Windows grow, caches fill.
        for number in range(options.rounds):
            for pair in pairs[:: -1 if number % 2 else 1]:
                found[pair.name].append(_cost(bench, pair, options.seconds))
    for name, rounds in found.items():
        client, server, rate = (statistics.median(values) for values in zip(*rounds, strict=True))
        print(f"{name:6} client {client:5.0f} us  server {server:5.0f} us  {rate:6.0f} 1/s")
    ratios = [
        (ours[0] + ours[1]) / (envoy[0] + envoy[1])
        for ours, envoy in zip(found["ours"], found["envoy"], strict=True)
    ]
    print(f"ours / Envoy, CPU of both ends: {statistics.median(ratios):.2f}")


def _cost(bench: Bench, pair: Pair, seconds: float) -> tuple[float, float, float]:
    """Microseconds of the client's and the server's proxy for each tunnel, and tunnels a second."""
    result = bench.load("connections", pair, TUNNELS_AT_ONCE, seconds)
    count, cpu = result["connections"], result["cpu"]
    client, server = (sum(cpu[pid] for pid in side) / count * 1e6 for side in (pair.client(), pair.server()))
    return client, server, count / result["seconds"]


if __name__ == "__main__":
    main()
