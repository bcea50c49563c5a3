"""When a number may be compared, and what is said when it may not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ambient.bench import gates
from ambient.bench.gates import RoundFacts, WireFacts
from ambient.bench.statistics import Interval

CLEAN = WireFacts(
    markers=0, plaintext=0, packets=10, dropped=0, captured_bytes=100, link_bytes_low=90, link_bytes_high=110
)
SHOWN = replace(CLEAN, markers=3, plaintext=5)
GOOD = RoundFacts(
    sent=100, ok=100, failed=0, offered_rps=100.0, achieved_rps=99.0, schedule_lags_us=[300] * 100, wire=CLEAN
)


def test_a_good_round_is_valid() -> None:
    """The other tests each break one thing of it."""
    assert gates.invalid_because("ambient", [GOOD, GOOD]) == []
    assert gates.invalid_because("none", [replace(GOOD, wire=SHOWN)]) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"achieved_rps": 94.9}, "achieved 97.0% of the offered"),
        ({"achieved_rps": 108.0}, "achieved 103.5%"),
        ({"failed": 2, "ok": 98}, "2 of 200 requests failed"),
        ({"schedule_lags_us": [10_001] * 3}, "the client was saturated"),
        ({"stable": False}, "a proxy started or ended"),
        ({"wire": None}, "not captured"),
        ({"wire": replace(CLEAN, dropped=1)}, "dropped packets"),
        ({"wire": replace(CLEAN, captured_bytes=89)}, "disagree"),
        ({"wire": replace(CLEAN, captured_bytes=111)}, "disagree"),
        ({"wire": replace(CLEAN, packets=0)}, "no packet crossed"),
        ({"wire": replace(CLEAN, markers=1)}, "plaintext on the wire"),
        ({"wire": replace(CLEAN, plaintext=1)}, "plaintext on the wire"),
    ],
)
def test_one_bad_round_makes_the_mode_invalid(change: dict[str, Any], reason: str) -> None:
    """Rate and lag over all rounds, everything else in each of them."""
    (found,) = gates.invalid_because("ambient", [GOOD, replace(GOOD, **change)])

    assert reason in found


def test_mode_none_has_to_show_the_marker() -> None:
    """If the capture cannot see plaintext, seeing none proves nothing."""
    (found,) = gates.invalid_because("none", [GOOD])

    assert "did not show the marker" in found


def test_no_rounds_are_no_result() -> None:
    """An interrupted run must not report zeros."""
    assert gates.invalid_because("none", []) == ["no round was completed"]


@pytest.mark.parametrize(
    ("interval", "requests", "reason"),
    [
        (Interval(1, 0.9, 1.1), 2000, ""),
        (Interval(1, 0.84, 1.16), 2000, "half width 16%"),
        (Interval(1, 0.9, 1.1), 1999, "1999 requests"),
        (None, 5000, "one side is zero"),
        (Interval(1, 0, float("inf")), 5000, "one round"),
    ],
    ids=["fine", "wide", "few", "nothing", "one-round"],
)
def test_what_is_resolved(interval: Interval | None, requests: int, reason: str) -> None:
    """The issue's numbers: 2,000 requests, 15 percent."""
    found = gates.unresolved_because(interval, requests)

    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_a_wide_latency_is_shown_with_its_width() -> None:
    """A tail is wide by nature; its interval says so itself."""
    assert gates.unresolved_because(Interval(1, 0.5, 2), 2000, width=False) == ""


@pytest.mark.parametrize(("cost", "fair"), [(None, True), (1.5, True), (1.51, False)])
def test_a_straw_sidecar_is_found_out(cost: float | None, fair: bool) -> None:
    """1.5 times Envoy at most."""
    assert (gates.straw_sidecar(cost) == "") is fair
