"""The latency of live traffic while the control plane pushes a large mesh.

    python benchmarks/push.py [-o json] [--workloads 10000] [--rounds 5]

One connection, 64 bytes at a time, in quiet and while both nodes take 10,000 workloads and 1,000 policies,
in turn. The closed loop hides how many round trips a pause would have met: the longest is told as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from ambient.bench.statistics import percentile  # noqa: E402 - the path comes first.
from ambient.model.mesh import Change  # noqa: E402
from benchmarks.bed import mesh  # noqa: E402
from benchmarks.bed.bench import Bench  # noqa: E402
from benchmarks.bed.describe import described  # noqa: E402
from benchmarks.bed.proxies import Ours  # noqa: E402

P99_BOUND = 1.5
SECONDS = 12.0


def main() -> int:
    """Measure, print; the exit code says whether the bound holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--workloads", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    change = mesh.crowd(arguments.workloads)
    quiet: list[list[float]] = []
    pushed: list[list[float]] = []
    took: list[float] = []
    with Bench() as bench:
        pair = bench.ours()
        client = bench.client()
        for _ in range(arguments.rounds):
            quiet.append(sorted(bench.load("latency", pair, 1, SECONDS)["samples_us"]))
            client.begin("latency", pair, 1, SECONDS)
            time.sleep(0.5)
            took.append(push(pair, change))
            pushed.append(sorted(client.result()["samples_us"]))
            push(pair, mesh.gone(change))
    ratios = [percentile(b, 0.99) / percentile(a, 0.99) for a, b in zip(quiet, pushed, strict=True)]
    found = {
        "workloads": arguments.workloads,
        "policies": arguments.workloads // 10,
        "rounds": arguments.rounds,
        "quiet_p99_us": statistics.median(percentile(each, 0.99) for each in quiet),
        "pushed_p99_us": statistics.median(percentile(each, 0.99) for each in pushed),
        "quiet_longest_us": statistics.median(each[-1] for each in quiet),
        "pushed_longest_us": statistics.median(each[-1] for each in pushed),
        "push_seconds": round(statistics.median(took), 2),
        "p99_ratio": round(statistics.median(ratios), 2),
        "p99_ratio_bound": P99_BOUND,
        "holds": statistics.median(ratios) <= P99_BOUND,
    }
    if arguments.output == "json":
        print(json.dumps({"kind": "PushBenchmark", **described(), **found}, indent=1))
    else:
        print("\n".join(f"{name:20} {value}" for name, value in found.items()))
    return 0 if found["holds"] else 1


def push(pair: Ours, change: Change) -> float:
    """Tell both nodes; returns how long they took to apply it."""
    began = time.perf_counter()
    for control in pair.controls:
        control.tell(change)
    for control in pair.controls:
        control.told()
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
