"""Percentiles and intervals, small enough to read.

Floor 5, pure: no clock, no randomness, no numpy. Rounds are the unit of everything with an interval: the
samples inside one round share a moment of a busy machine, so they are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t, two-sided 95 %, by degrees of freedom 1..30; any textbook's table.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
_NORMAL95 = 1.960


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its 95 % confidence interval; the ends are infinite where rounds are too few."""

    value: float
    low: float
    high: float

    @property
    def relative_half_width(self) -> float:
        """Half the interval's width as a share of the value."""
        if self.value == 0:
            return 0.0 if self.low == self.high else math.inf
        return (self.high - self.low) / 2 / abs(self.value)

    @property
    def ci95(self) -> list[float | None]:
        """The two ends for JSON, which knows no infinity."""
        return [end if math.isfinite(end) else None for end in (self.low, self.high)]


def t_quantile(degrees: int) -> float:
    """Student's t for a two-sided 95 % interval."""
    return _T95[degrees - 1] if degrees <= len(_T95) else _NORMAL95


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest value with at least *share* of all at or below it (nearest rank); 0 if there is none.

    Args:
        ordered: Ascending.
        share: 0..1.
    """
    if not ordered:
        return 0.0
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def percentile_interval(ordered: Sequence[float], share: float) -> Interval:
    """A percentile with the distribution-free interval between two order statistics.

    Source: Conover, Practical Nonparametric Statistics, 3.2 (normal approximation of the binomial).
    """
    count = len(ordered)
    value = percentile(ordered, share)
    if not count:
        return Interval(value, value, value)
    spread = _NORMAL95 * math.sqrt(count * share * (1 - share))
    low = max(0, math.floor(count * share - spread) - 1)
    high = min(count - 1, math.ceil(count * share + spread))
    return Interval(value, ordered[low], ordered[high])


def mean_interval(values: Sequence[float]) -> Interval:
    """The mean over rounds with Student's interval; infinite for one round.

    Args:
        values: One per round, at least one.
    """
    mean = sum(values) / len(values)
    if len(values) < 2:
        return Interval(mean, -math.inf, math.inf)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    half = t_quantile(len(values) - 1) * math.sqrt(variance / len(values))
    return Interval(mean, mean - half, mean + half)


def ratio_interval(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """The ratio of two modes over the same rounds, with its interval.

    Paired by round and taken on logarithms: what slows a whole round down hits both modes and cancels, and
    a ratio and its inverse get the same width.

    Returns:
        None where a ratio means nothing: a value that is not positive, or no rounds.
    """
    pairs = list(zip(above, below, strict=True))
    if not pairs or any(value <= 0 for pair in pairs for value in pair):
        return None
    logs = mean_interval([math.log(a / b) for a, b in pairs])
    return Interval(math.exp(logs.value), math.exp(logs.low), _exp(logs.high))


def _exp(value: float) -> float:
    return math.inf if value == math.inf else math.exp(value)
