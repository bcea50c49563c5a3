"""What a run does is decided, and refused, before it starts."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from ambient.bench.gates import MIN_REQUESTS
from ambient.bench.plan import MODES, Options, Turn, schedule
from ambient.bench.run import estimate
from ambient.errors import ConfigError


def test_every_round_has_every_mode_once_in_a_new_order() -> None:
    """What follows what is chance, and the same chance for a seed."""
    options = Options(rounds=40)
    plan = schedule(options)

    assert all(sorted(one, key=str) == sorted(options.turns, key=str) for one in plan)
    assert plan == schedule(options) != schedule(replace(options, seed=8))
    assert len({tuple(one) for one in plan}) > 1
    in_a_row = [turn for one in plan for turn in one]
    assert all(a != b for a, b in itertools.pairwise(in_a_row))


def test_envoy_runs_in_a_few_rounds_only() -> None:
    """One question of yes or no is not worth a quarter of the time."""
    plan = schedule(Options(judge=True))

    assert [Turn("sidecar", "envoy") in one for one in plan] == [True, True, False, False, False]
    assert schedule(Options(modes=("none",), rounds=2)) == [[Turn("none")], [Turn("none")]]


def test_envoy_judges_our_sidecar_only_where_ours_runs() -> None:
    """With --engine envoy there is nothing to judge."""
    judge = Turn("sidecar", "envoy")

    assert judge in Options(judge=True).turns
    assert Options(judge=True, engine="envoy").turns == tuple(
        Turn(mode, "envoy" if mode == "sidecar" else "ambient") for mode in MODES
    )
    assert judge not in Options(judge=True, modes=("none", "ambient")).turns
    assert judge.label == "sidecar/envoy"
    assert Turn("ambient").label == "ambient"


def test_a_quick_run_is_under_three_minutes_and_still_resolves() -> None:
    """Both promises of the README's first screen."""
    quick = Options(judge=True).quick()

    assert quick.rate * quick.duration >= MIN_REQUESTS
    assert estimate(quick) < 180


@pytest.mark.parametrize(
    "change",
    [{"modes": ("node-proxy",)}, {"modes": ()}, {"modes": ("none", "none")}, {"rate": 0}, {"rounds": 0}],
)
def test_what_cannot_be_run_is_refused(change: dict[str, Any]) -> None:
    """Before a mesh is started for it."""
    with pytest.raises(ConfigError):
        Options(**change)
