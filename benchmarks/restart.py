"""What a killed ztunnel and an upgraded one cost those who connect meanwhile, as JSON.

    python benchmarks/restart.py [--kills 10] [--upgrades 20] [--rate 200] [--long 500] -o json

A client on node 1 opens connections at a steady rate, at scheduled times, through both nodes' ztunnels to an
echo server on node 2. First ztunnels are killed with SIGKILL, in turn on both nodes: the stall of a kill is
the longest wait of any connection that was begun after it and before the service was back. A connection
that was open at the moment of a kill is cut, as the kernel closes what a dead process held; these are
counted apart (``cut``), and nobody else may fail. Then ztunnels are upgraded in place, in turn on both
nodes, under the same rate and with long streams that compare every byte: nothing at all may fail.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])

from ambient.bench.machine import describe  # noqa: E402
from benchmarks.shop import Shop, shop, wait_for, wait_until_ready  # noqa: E402

NODES = ("node-1", "node-2")
# Between two kills: the last one's outage is over by then, or counts as its stall.
PAUSE_SECONDS = 3.0
STALL_BOUND_MS = 500.0


@dataclass(frozen=True)
class Row:
    """One figure; *bound* None where there is none to hold."""

    metric: str
    unit: str
    value: float
    bound: float | None = None
    holds: bool = True


def below(metric: str, unit: str, value: float, bound: float) -> Row:
    """A row that holds while *value* does not exceed *bound*."""
    return Row(metric, unit, value, bound, value <= bound)


def percentile(values: list[float], share: float) -> float:
    """The nearest-rank percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def kill(mesh: Shop, kills: int, rate: float) -> list[Row]:
    """SIGKILL under load."""
    client = mesh.knock(rate=rate, seconds=(kills + 1) * PAUSE_SECONDS)
    wait_until_ready(client)
    moments: list[tuple[float, float]] = []
    for number in range(kills):
        time.sleep(PAUSE_SECONDS)
        victim = mesh.ztunnel(NODES[number % len(NODES)])
        moments.append(mesh.kill(victim))
    said, _ = client.communicate()
    short = json.loads(said)["short"]
    cut, failed = judge(short, moments)
    stalls = [stall(short, moment) * 1000 for moment, _ in moments]
    healthy = [lasted * 1000 for _began, lasted, outcome in short if not outcome]
    return [
        Row("kill_connections", "1", len(short)),
        Row("kill_cut", "1", len(cut)),
        below("kill_refused_or_reset", "1", len(failed), 0),
        Row("kill_latency_p50", "ms", round(percentile(healthy, 0.5), 1)),
        Row("kill_stall_p50", "ms", round(percentile(stalls, 0.5), 1)),
        below("kill_stall_p99", "ms", round(percentile(stalls, 0.99), 1), STALL_BOUND_MS),
    ]


def judge(short: list[Any], kills: list[tuple[float, float]]) -> tuple[list[Any], list[Any]]:
    """Failures of connections that were open at a kill, and all others."""
    failures = [each for each in short if each[2]]
    cut = [
        (began, lasted, outcome)
        for began, lasted, outcome in failures
        if any(began <= after and before <= began + lasted for before, after in kills)
    ]
    began = {each[0] for each in cut}
    return cut, [each for each in failures if each[0] not in began]


def stall(short: list[Any], moment: float) -> float:
    """The longest wait of those that came after *moment*, until one of them was served at once."""
    return max(
        (lasted for began, lasted, _ in short if moment < began < moment + PAUSE_SECONDS / 2), default=0.0
    )


def upgrade(mesh: Shop, upgrades: int, rate: float, long: int) -> list[Row]:
    """In place, under load."""
    client = mesh.knock(rate=rate, seconds=max(2.0, upgrades * 1.0) + 2.0, long=long)
    wait_until_ready(client)
    took = []
    for number in range(upgrades):
        began = time.monotonic()
        took.append(mesh.fabric("restart_ztunnel", node=NODES[number % len(NODES)])["seconds"])
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))
    overlapping = sum(each["role"] == "ztunnel" for each in mesh.processes())
    said, _ = client.communicate()
    result = json.loads(said)
    short, streams = result["short"], result["long"]
    waits = [lasted * 1000 for _began, lasted, _ in short]
    wait_for(lambda: sum(each["role"] == "ztunnel" for each in mesh.processes()) == 4, "the old ones to go")
    return [
        Row("upgrades", "1", upgrades),
        Row("upgrade_connections", "1", len(short)),
        below("upgrade_failed", "1", sum(bool(outcome) for _, _, outcome in short), 0),
        below("upgrade_streams_failed", "1", len(streams["failures"]) + long - streams["alive"], 0),
        Row("upgrade_stream_messages", "1", streams["messages"]),
        Row("upgrade_latency_p50", "ms", round(percentile(waits, 0.5), 1)),
        Row("upgrade_latency_p99", "ms", round(percentile(waits, 0.99), 1)),
        Row("upgrade_seconds_p50", "s", percentile(took, 0.5)),
        Row("upgrade_processes_at_the_end", "1", overlapping),
    ]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="see the top of the file")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--upgrades", type=int, default=20)
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--long", type=int, default=500)
    parser.add_argument("-o", "--output", choices=("json", "table"), default="table")
    options = parser.parse_args()
    rows: list[Row] = []
    with shop() as mesh:
        if options.kills:
            rows += kill(mesh, options.kills, options.rate)
        if options.upgrades:
            rows += upgrade(mesh, options.upgrades, options.rate, options.long)
    if options.output == "json":
        document = {"kind": "RestartBenchmark", "machine": describe(), "rows": [asdict(row) for row in rows]}
        print(json.dumps(document, indent=2))
    else:
        for row in rows:
            mark = "" if row.bound is None else f"  (bound {row.bound:g}{'' if row.holds else ': BROKEN'})"
            print(f"{row.metric:32} {row.value:>10g} {row.unit}{mark}")
    return 0 if all(row.holds for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
