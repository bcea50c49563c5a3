"""The few numbers that a row needs. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """p50 and p99 by the nearest rank: a value that was seen, never one in between."""
    ranked = sorted(values)
    return {name: round(_rank(ranked, share), 1) for name, share in (("p50", 0.5), ("p99", 0.99))}


def _rank(ranked: Sequence[float], share: float) -> float:
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)] if ranked else 0.0
