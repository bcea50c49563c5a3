"""What a node daemon with many idle pods costs: CPU while nothing happens, and memory.

python benchmarks/idle.py [-o json] [--pods 250] [--seconds 10]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.bed import mesh  # noqa: E402 - the path comes first.
from benchmarks.bed.bench import Bench  # noqa: E402
from benchmarks.bed.describe import described  # noqa: E402
from benchmarks.bed.procfs import cpu_seconds, pss_bytes  # noqa: E402

CPU_BOUND = 0.01


def main() -> int:
    """Measure, print; the exit code says whether the bound holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=10.0)
    arguments = parser.parse_args()
    crowd = tuple(
        mesh.workload(f"idle-{number}", mesh.address(100 + number), "node-2")
        for number in range(arguments.pods - 1)
    )
    with Bench() as bench:
        pair = bench.ours(crowd)
        bench.load("ping_pong", pair, 4, 0.2)
        pids = pair.server()
        before = cpu_seconds(pids)
        time.sleep(arguments.seconds)
        share = (cpu_seconds(pids) - before) / arguments.seconds
        found = {
            "pods": arguments.pods,
            "seconds": arguments.seconds,
            "cpu_share": round(share, 5),
            "cpu_share_bound": CPU_BOUND,
            "memory_bytes": pss_bytes(pids),
            "holds": share <= CPU_BOUND,
        }
    if arguments.output == "json":
        print(json.dumps({"kind": "IdleBenchmark", **described(), **found}, indent=1))
    else:
        print("\n".join(f"{name:20} {value}" for name, value in found.items()))
    return 0 if found["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
