"""CPU of a full handshake of mutual TLS at each end, ours beside Envoy's: tunnels that share no connection.

    python benchmarks/handshakes.py [-o json] [--rounds N] [--seconds S]

Each connection of the load costs a connection between the two proxies, a full handshake (no session is
resumed), one CONNECT and 64 bytes there and back. What that costs beyond a tunnel over a pooled connection,
measured in the same rounds, is the handshake with its connection. Handshakes a second of one core are what
would fit into a second of CPU time of the busier end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

from benchmarks.bed.bench import Bench  # noqa: E402 - the path comes first.
from benchmarks.bed.describe import described  # noqa: E402
from benchmarks.bed.measure import TUNNELS_AT_ONCE  # noqa: E402
from benchmarks.bed.proxies import Envoy, Ours, Pair  # noqa: E402

WARM_UP_SECONDS = 0.3


def main() -> None:
    """Measure and print; there is no bound to hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each load")
    options = parser.parse_args()
    with Bench() as bench:
        rounds = {
            kind: _rounds(bench, kind, options.rounds, options.seconds) for kind in ("pooled", "unpooled")
        }
    rows = [row(end, rounds["unpooled"], rounds["pooled"]) for end in ("client", "server")]
    if options.output == "json":
        document = {"kind": "HandshakeBenchmark", **described(), "rounds": options.rounds, "rows": rows}
        print(json.dumps(document, indent=1))
    else:
        print(text(rows))


def _rounds(bench: Bench, kind: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Microseconds of CPU for each connection, by ``end/proxy``, round by round."""
    pairs = [bench.pair(each, pooled=kind == "pooled") for each in (Ours, Envoy)]
    found: dict[str, list[float]] = {}
    for pair in pairs:
        bench.load("connections", pair, TUNNELS_AT_ONCE, WARM_UP_SECONDS)
    for number in range(rounds):
        for pair in pairs[:: -1 if number % 2 else 1]:
            for end, cost in _costs(bench, pair, seconds).items():
                found.setdefault(f"{end}/{pair.name}", []).append(cost)
    for pair in pairs:
        bench.drop(pair)
    return found


def _costs(bench: Bench, pair: Pair, seconds: float) -> dict[str, float]:
    result = bench.load("connections", pair, TUNNELS_AT_ONCE, seconds)
    count, cpu = result["connections"], result["cpu"]
    ends = {"client": pair.client(), "server": pair.server()}
    return {end: sum(cpu[pid] for pid in pids) / count * 1e6 for end, pids in ends.items()}


def row(end: str, unpooled: dict[str, list[float]], pooled: dict[str, list[float]]) -> dict[str, Any]:
    """One end's figures; pure."""
    ours, envoy = unpooled[f"{end}/ours"], unpooled[f"{end}/envoy"]
    handshake = {
        name: statistics.median(unpooled[f"{end}/{name}"]) - statistics.median(pooled[f"{end}/{name}"])
        for name in ("ours", "envoy")
    }
    return {
        "metric": f"{end}_cpu_per_unpooled_tunnel",
        "unit": "us",
        "ours": round(statistics.median(ours), 1),
        "envoy": round(statistics.median(envoy), 1),
        "ratio": round(statistics.median(_ratios(ours, envoy)), 3),
        "handshake_ours_us": round(handshake["ours"], 1),
        "handshake_envoy_us": round(handshake["envoy"], 1),
        "ours_per_core_second": round(1e6 / statistics.median(ours)),
        "envoy_per_core_second": round(1e6 / statistics.median(envoy)),
    }


def _ratios(ours: Sequence[float], envoy: Sequence[float]) -> list[float]:
    return [one / other for one, other in zip(ours, envoy, strict=True)]


def text(rows: Sequence[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{'END':7} {'OURS us':>8} {'ENVOY us':>9} {'RATIO':>6}  {'HANDSHAKE: OURS us':>18} {'ENVOY us':>9}"
    ]
    lines += [
        f"{each['metric'][:6]:7} {each['ours']:8,.0f} {each['envoy']:9,.0f} {each['ratio']:6.2f}"
        f"  {each['handshake_ours_us']:18,.0f} {each['handshake_envoy_us']:9,.0f}"
        for each in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
