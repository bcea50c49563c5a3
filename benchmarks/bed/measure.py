"""What a round of the comparison does, and the gate that tells a measurement from an accident."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeAlias

from ambient.bench.statistics import percentile
from benchmarks.bed import rows
from benchmarks.bed.bench import Bench
from benchmarks.bed.procfs import pss_bytes
from benchmarks.bed.proxies import Envoy, Ours, Pair
from benchmarks.bed.rows import Metric, Samples

OPEN_TUNNELS = 5000
# What an idle tunnel takes is the slope from so many on: pages that a daemon and its zygote shared until the
# first crowd came, and what an allocator takes in advance, are memory of the process.
FEW_TUNNELS = 500
# Connections of the new-tunnels load that are under way at once.
TUNNELS_AT_ONCE = 16
# Idle is what has been so for a while, for both.
IDLE_SECONDS = 7.0

Found: TypeAlias = dict[str, Any]
# metric -> its value in one result of the load client, and that result, for the gate.
Step: TypeAlias = Callable[[Bench, Pair, float], tuple[dict[Metric, float], Found]]


class Comparison:
    """Samples by metric, gathered round by round."""

    def __init__(self) -> None:
        self.samples: dict[Metric, Samples] = {metric: Samples() for metric in rows.TABLE}

    def add(self, pair: Pair, values: dict[Metric, float]) -> None:
        """One half of a round."""
        for metric, value in values.items():
            samples = self.samples[metric]
            (samples.ours if pair.name == "ours" else samples.envoy).append(value)

    def refuse(self, metrics: Any, why: str) -> None:
        """What was measured was something else."""
        for metric in metrics:
            self.samples[metric].invalid = why

    def rows(self) -> list[dict[str, Any]]:
        """The table, without what was not measured."""
        return [rows.row(metric, found) for metric, found in self.samples.items() if found.ours]


def speed_round(bench: Bench, pairs: list[Pair], seconds: float, into: Comparison) -> None:
    """Every kind of load, on one pair right after the other."""
    for step in STEPS:
        for pair in pairs:
            values, found = step(bench, pair, seconds)
            into.add(pair, values)
            if why := bottleneck(found, pair, bench.application_pid):
                into.refuse(values, f"{pair.name}: {why}")


def memory_round(bench: Bench, into: Comparison) -> None:
    """A fresh pair of each: idle, and with many tunnels open."""
    for kind in (Ours, Envoy):
        pair = bench.pair(kind)
        # One tunnel: certificates are read and the first connection is there.
        bench.load("connections", pair, 1, 0.1)
        time.sleep(IDLE_SECONDS)
        idle = pss_bytes(pair.client()) + pss_bytes(pair.server())
        bench.load("open_idle", pair, FEW_TUNNELS, 0)
        client, server = pss_bytes(pair.client()), pss_bytes(pair.server())
        bench.load("open_idle", pair, OPEN_TUNNELS - FEW_TUNNELS, 0)
        client_after, server_after = pss_bytes(pair.client()), pss_bytes(pair.server())
        bench.load("close_idle", pair, 0, 0)
        bench.drop(pair)
        values = {
            rows.IDLE: idle,
            rows.IDLE_CLIENT: (client_after - client) / (OPEN_TUNNELS - FEW_TUNNELS),
            rows.IDLE_SERVER: (server_after - server) / (OPEN_TUNNELS - FEW_TUNNELS),
            rows.LOADED: client_after + server_after,
        }
        into.add(pair, values)


def bottleneck(found: Found, pair: Pair, application: int) -> str:
    """Why the figure says nothing about the proxies; "" if it does.

    In a closed loop the busiest process sets the pace: it has to be one of the proxies'.
    """
    cpu: dict[int, float] = found["cpu"]
    busiest = max(sum(cpu[pid] for pid in side) for side in (pair.client(), pair.server()))
    if found["own_cpu"] > busiest:
        return f"the load client was the bottleneck ({found['own_cpu']:.2f} s CPU, proxies {busiest:.2f} s)"
    if cpu[application] > busiest:
        return f"the application was the bottleneck ({cpu[application]:.2f} s CPU, proxies {busiest:.2f} s)"
    return ""


def _proxies_cpu(found: Found, pair: Pair) -> float:
    cpu: dict[int, float] = found["cpu"]
    return sum(cpu[pid] for pid in (*pair.client(), *pair.server()))


def _bulk(count: int, metric: Metric) -> Step:
    def step(bench: Bench, pair: Pair, seconds: float) -> tuple[dict[Metric, float], Found]:
        found = bench.load("bulk", pair, count, seconds)
        return {metric: found["bytes"] / _proxies_cpu(found, pair)}, found

    return step


def _ping_pong(count: int, metric: Metric) -> Step:
    def step(bench: Bench, pair: Pair, seconds: float) -> tuple[dict[Metric, float], Found]:
        found = bench.load("ping_pong", pair, count, seconds)
        return {metric: found["trips"] / found["seconds"]}, found

    return step


def _latency(bench: Bench, pair: Pair, seconds: float) -> tuple[dict[Metric, float], Found]:
    found = bench.load("latency", pair, 1, seconds)
    samples = sorted(found["samples_us"])
    return {rows.P50: percentile(samples, 0.5), rows.P99: percentile(samples, 0.99)}, found


def _new_tunnels(bench: Bench, pair: Pair, seconds: float) -> tuple[dict[Metric, float], Found]:
    found = bench.load("connections", pair, TUNNELS_AT_ONCE, seconds)
    return {rows.TUNNELS: found["connections"] / found["seconds"]}, found


STEPS: tuple[Step, ...] = (
    _bulk(1, rows.BULK_1),
    _bulk(8, rows.BULK_8),
    _ping_pong(16, rows.PING_16),
    _ping_pong(64, rows.PING_64),
    _latency,
    _new_tunnels,
)
