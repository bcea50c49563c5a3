"""ztunnel beside real Envoy 1.40, interleaved: speed and memory of the HBONE path, both over two processes.

    python benchmarks/tunnel.py [-o json] [--rounds 7] [--seconds 1.5] [--quick]

``--quick`` takes less than a minute and is for a look; the table's bounds are judged by a full run.
benchmarks/README.md says what is measured and how, and what noise to expect.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.bed.bench import Bench  # noqa: E402 - the path comes first.
from benchmarks.bed.describe import described  # noqa: E402
from benchmarks.bed.measure import Comparison, memory_round, speed_round  # noqa: E402
from benchmarks.bed.proxies import Envoy, Ours  # noqa: E402
from benchmarks.bed.rows import text_table  # noqa: E402

QUICK = {"rounds": 3, "memory_rounds": 1, "seconds": 0.6}
FULL = {"rounds": 7, "memory_rounds": 3, "seconds": 1.5}


def main() -> int:
    """Measure, print; the exit code says whether every bound holds."""
    arguments = _arguments()
    began = time.time()
    comparison = Comparison()
    order = random.Random(arguments.seed)
    with Bench() as bench:
        for number in range(arguments.memory_rounds):
            _say(f"memory, round {number + 1} of {arguments.memory_rounds}")
            memory_round(bench, comparison)
        pairs = [bench.pair(Ours), bench.pair(Envoy)]
        for number in range(arguments.rounds):
            _say(f"speed, round {number + 1} of {arguments.rounds}")
            order.shuffle(pairs)
            speed_round(bench, pairs, arguments.seconds, comparison)
    rows = comparison.rows()
    if arguments.output == "json":
        print(json.dumps(_document(arguments, rows, time.time() - began), indent=1))
    else:
        print(text_table(rows))
    return 0 if all(each["holds"] for each in rows) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--rounds", type=int, help="of speed; at least 5 for a verdict")
    parser.add_argument("--memory-rounds", type=int)
    parser.add_argument("--seconds", type=float, help="of each load")
    parser.add_argument("--quick", action="store_true", help="under a minute")
    parser.add_argument("--seed", type=int, default=1, help="of the order in each round")
    found = parser.parse_args()
    for name, value in (QUICK if found.quick else FULL).items():
        if getattr(found, name) is None:
            setattr(found, name, value)
    return found


def _document(arguments: argparse.Namespace, rows: list[dict[str, Any]], took: float) -> dict[str, Any]:
    settings = {name: getattr(arguments, name) for name in ("rounds", "memory_rounds", "seconds", "seed")}
    return {
        "kind": "TunnelBenchmark",
        **described(),
        **settings,
        "took_seconds": round(took, 1),
        "rows": rows,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
