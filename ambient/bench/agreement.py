"""Whether two runs say the same: their ratios, within their intervals. Floor 5, pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def agreements(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every ratio that both runs have; *agrees* is None where one of them is not resolved."""
    found = []
    for name, metrics in first["ratios"].items():
        for metric, one in metrics.items():
            other = second["ratios"].get(name, {}).get(metric)
            if other is not None:
                found.append(
                    {
                        "ratio": name,
                        "metric": metric,
                        "first": one["value"],
                        "second": other["value"],
                        "agrees": overlap(one, other),
                    }
                )
    return found


def overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool | None:
    """Whether two intervals have a value in common."""
    if not (one["resolved"] and other["resolved"]):
        return None
    (low, high), (other_low, other_high) = one["ci95"], other["ci95"]
    return bool(low <= other_high and other_low <= high)
