"""A thousand streams whose application never reads: what they make a node hold, and what a neighbour notices.

    python benchmarks/stalled.py [-o json] [--streams 1000] [--rounds 4] [--seconds 1.5]

A neighbour's bulk transfer is measured alone, then while the stalled streams (on the same pooled connections)
are fed whatever they take, then alone again, so that a machine that drifts does not pass for an effect.
Memory is what both nodes' daemons added, PSS.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.bed.bench import Bench, Client  # noqa: E402 - the path comes first.
from benchmarks.bed.describe import described  # noqa: E402
from benchmarks.bed.procfs import pss_bytes  # noqa: E402
from benchmarks.bed.proxies import Ours, Pair  # noqa: E402

MEMORY_BOUND_BYTES = 150 * 1024 * 1024
NEIGHBOUR_BOUND = 0.90
# Until the stalled streams have taken all that they will.
FILLING_SECONDS = 6.0


def main() -> int:
    """Measure, print; the exit code says whether both bounds hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=4, help="before and after; twice as many beside")
    parser.add_argument("--seconds", type=float, default=1.5)
    arguments = parser.parse_args()
    with Bench() as bench:
        found = measure(bench, arguments.streams, arguments.rounds, arguments.seconds)
    if arguments.output == "json":
        print(json.dumps({"kind": "StalledBenchmark", **described(), **found}, indent=1))
    else:
        print("\n".join(f"{name:32} {value}" for name, value in found.items()))
    return 0 if found["holds"] else 1


def measure(bench: Bench, streams: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Alone and beside, as the bytes the neighbour moves for a CPU second of the proxies and for a second."""
    pair, feeder = bench.pair(Ours), bench.client()
    alone = [neighbour(bench, pair, seconds) for _ in range(rounds)]
    before = pss_bytes(pair.client()), pss_bytes(pair.server())
    feeder.begin("stall", pair, streams, FILLING_SECONDS)
    filled = feeder.result()
    after = pss_bytes(pair.client()), pss_bytes(pair.server())
    beside = [fed_neighbour(bench, pair, feeder, seconds) for _ in range(2 * rounds)]
    feeder.begin("unstall", pair, 0, 0.0, bench.application_pid)
    feeder.result()
    alone += [neighbour(bench, pair, seconds) for _ in range(rounds)]
    added = [now - then for now, then in zip(after, before, strict=True)]
    share = statistics.median(each["rate"] for each in beside) / statistics.median(
        each["rate"] for each in alone
    )
    cpu_share = statistics.median(each["per_cpu"] for each in beside) / statistics.median(
        each["per_cpu"] for each in alone
    )
    return {
        "streams": streams,
        "rounds": rounds,
        "fed_bytes": filled["bytes"],
        "added_client_bytes": added[0],
        "added_server_bytes": added[1],
        "added_bound_bytes": MEMORY_BOUND_BYTES,
        "neighbour_alone_bytes_per_second": round(statistics.median(each["rate"] for each in alone)),
        "neighbour_beside_bytes_per_second": round(statistics.median(each["rate"] for each in beside)),
        "neighbour_share": round(share, 3),
        "neighbour_share_per_cpu_second": round(cpu_share, 3),
        "neighbour_bound": NEIGHBOUR_BOUND,
        "holds": sum(added) <= MEMORY_BOUND_BYTES and share >= NEIGHBOUR_BOUND,
    }


def neighbour(bench: Bench, pair: Pair, seconds: float) -> dict[str, float]:
    """One bulk transfer over one connection."""
    found = bench.load("bulk", pair, 1, seconds)
    cpu = sum(found["cpu"][pid] for pid in (*pair.client(), *pair.server()))
    return {"rate": found["bytes"] / found["seconds"], "per_cpu": found["bytes"] / cpu}


def fed_neighbour(bench: Bench, pair: Pair, feeder: Client, seconds: float) -> dict[str, float]:
    """The same, while the stalled streams go on being fed."""
    feeder.begin("feed", pair, 0, seconds + 1.0)
    found = neighbour(bench, pair, seconds)
    feeder.result()
    return found


if __name__ == "__main__":
    sys.exit(main())
