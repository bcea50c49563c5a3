"""One process for a node against two, among which the kernel deals out connections (SO_REUSEPORT).

    python benchmarks/workers.py [-o json] [--rounds N] [--seconds S]

What a second process would bring, and cost: ztunnel itself has one, which is why the second one is made here
and not by an option. Both nodes have two, with a pool each. On a machine whose cores are busy with the first
ones already, a second process can only cost: read the rates beside the number of cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.bed.bench import Bench  # noqa: E402 - the path comes first.
from benchmarks.bed.describe import described  # noqa: E402
from benchmarks.bed.procfs import pss_bytes  # noqa: E402
from benchmarks.bed.proxies import Pair  # noqa: E402

# name -> what the load client does, how much of it at once, and what it counts.
LOADS = {
    "ping_pong_64": ("ping_pong", 64, "trips"),
    "new_tunnels_16": ("connections", 16, "connections"),
    "bulk_8": ("bulk", 8, "bytes"),
}

Samples = dict[str, list[float]]


def main() -> None:
    """Measure and print; there is no bound to hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load")
    options = parser.parse_args()
    found: dict[int, Samples] = {1: {}, 2: {}}
    with Bench() as bench:
        for _ in range(options.rounds):
            for workers, samples in found.items():
                _round(bench, workers, options.seconds, samples)
    rows = [row(name, found[1], found[2]) for name in found[1]]
    if options.output == "json":
        document = {"kind": "WorkersBenchmark", **described(), "rounds": options.rounds, "rows": rows}
        print(json.dumps(document, indent=1))
    else:
        print(text(rows))


def _round(bench: Bench, workers: int, seconds: float, into: Samples) -> None:
    pair = bench.ours(workers=workers)
    for name, (do, count, unit) in LOADS.items():
        result = bench.load(do, pair, count, seconds)
        done = result[unit]
        into.setdefault(f"{name}_per_second", []).append(done / result["seconds"])
        into.setdefault(f"{name}_per_cpu_second", []).append(done / _cpu(pair, result["cpu"]))
    into.setdefault("memory_bytes", []).append(pss_bytes([*pair.client(), *pair.server()]))
    bench.drop(pair)


def _cpu(pair: Pair, cpu: Mapping[int, float]) -> float:
    return sum(cpu[pid] for pid in (*pair.client(), *pair.server()))


def row(name: str, one: Samples, two: Samples) -> dict[str, Any]:
    """Medians, and the median of the rounds' own ratios; pure."""
    ratios = [more / less for less, more in zip(one[name], two[name], strict=True)]
    return {
        "metric": name,
        "one": round(statistics.median(one[name]), 1),
        "two": round(statistics.median(two[name]), 1),
        "ratio": round(statistics.median(ratios), 3),
    }


def text(rows: Sequence[dict[str, Any]]) -> str:
    """For people."""
    lines = [f"{'METRIC':34} {'ONE':>14} {'TWO':>14} {'RATIO':>6}   ({os.cpu_count()} cores)"]
    lines += [
        f"{each['metric']:34} {each['one']:14,.0f} {each['two']:14,.0f} {each['ratio']:6.2f}" for each in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
