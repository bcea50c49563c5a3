"""Intervals that can be checked by hand, and the laws they obey."""

from __future__ import annotations

import math

import pytest

from ambient.bench import statistics
from ambient.bench.statistics import Interval


@pytest.mark.parametrize(
    ("share", "value"), [(0.0, 1), (0.5, 5), (0.9, 9), (0.91, 10), (0.99, 10), (1.0, 10)]
)
def test_percentiles_are_observed_values(share: float, value: float) -> None:
    """Nearest rank: nobody has to believe in a latency that no request had."""
    assert statistics.percentile(range(1, 11), share) == value


def test_a_percentile_of_nothing_is_zero() -> None:
    """A mode without answers is invalid anyway; it must not crash the report."""
    assert statistics.percentile([], 0.5) == 0
    assert statistics.percentile_interval([], 0.5) == Interval(0, 0, 0)


def test_the_interval_of_a_percentile_lies_between_two_samples() -> None:
    """Ranks 50 -+ 9.8 of a hundred."""
    found = statistics.percentile_interval(range(1, 101), 0.5)

    assert found == Interval(50, 40, 61)


def test_the_interval_of_an_extreme_percentile_stays_inside() -> None:
    """Few samples, high percentile: the largest one is the end, not an index error."""
    assert statistics.percentile_interval([1, 2, 3], 0.99) == Interval(3, 2, 3)
    assert statistics.percentile_interval([1, 2, 3], 0.01).low == 1


def test_students_interval() -> None:
    """Mean 3, deviation sqrt(2.5), five rounds: 2.776 * sqrt(2.5 / 5)."""
    found = statistics.mean_interval([1, 2, 3, 4, 5])

    assert found.value == 3
    assert found.high - found.value == pytest.approx(2.776 * math.sqrt(0.5))
    assert found.relative_half_width == pytest.approx(2.776 * math.sqrt(0.5) / 3)


def test_one_round_proves_nothing() -> None:
    """And JSON has no infinity."""
    found = statistics.mean_interval([7])

    assert found.ci95 == [None, None]
    assert found.relative_half_width == math.inf


def test_many_rounds_are_nearly_normal() -> None:
    """The table ends at 30 degrees of freedom."""
    assert statistics.t_quantile(30) == 2.042
    assert statistics.t_quantile(31) == 1.960


def test_a_ratio_is_paired_by_round() -> None:
    """A round that is slow for both modes does not widen the ratio."""
    found = statistics.ratio_interval([2, 20, 6], [1, 10, 3])

    assert found is not None
    assert found.value == pytest.approx(2)
    assert found.low == pytest.approx(found.high) == pytest.approx(2)


def test_a_ratio_and_its_inverse_have_the_same_width() -> None:
    """Which of two modes is above must not decide whether they are resolved."""
    above, below = [1.0, 2.0, 4.0], [2.0, 2.0, 3.0]
    one, other = statistics.ratio_interval(above, below), statistics.ratio_interval(below, above)

    assert one is not None
    assert other is not None
    assert one.high / one.low == pytest.approx(other.high / other.low)


@pytest.mark.parametrize(
    ("above", "below"),
    [([], []), ([1, 0], [1, 1]), ([1, 1], [0, 1])],
    ids=["none", "zero-above", "zero-below"],
)
def test_a_ratio_of_nothing_is_none(above: list[float], below: list[float]) -> None:
    """Mode none has no proxies: nothing may be divided by their CPU."""
    assert statistics.ratio_interval(above, below) is None


def test_a_ratio_of_one_round_has_no_ends() -> None:
    """Infinite above, zero below."""
    found = statistics.ratio_interval([2], [1])

    assert found is not None
    assert (found.low, found.high) == (0, math.inf)


@pytest.mark.parametrize(("interval", "width"), [((0, 0, 0), 0.0), ((0, -1, 1), math.inf)])
def test_the_width_of_zero(interval: tuple[float, float, float], width: float) -> None:
    """Exactly nothing is exact; about nothing is not resolved."""
    assert Interval(*interval).relative_half_width == width
