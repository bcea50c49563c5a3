"""The table: what is compared, how it is judged, and its two printed forms. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ambient.bench.statistics import percentile


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the issue's table.

    Attributes:
        bound: Of ours / Envoy.
        higher: Whether more is better, so that *bound* is the least ratio and not the greatest.
    """

    name: str
    unit: str
    bound: float
    higher: bool = True


BULK_1 = Metric("bulk_1_bytes_per_cpu_second", "B/s", 0.80)
BULK_8 = Metric("bulk_8_bytes_per_cpu_second", "B/s", 0.90)
PING_16 = Metric("ping_pong_16_round_trips_per_second", "1/s", 0.75)
PING_64 = Metric("ping_pong_64_round_trips_per_second", "1/s", 0.90)
P50 = Metric("ping_pong_1_p50_us", "us", 1.05, higher=False)
P99 = Metric("ping_pong_1_p99_us", "us", 1.30, higher=False)
TUNNELS = Metric("new_tunnels_per_second", "1/s", 1.25)
IDLE = Metric("idle_memory_bytes", "B", 0.75, higher=False)
IDLE_CLIENT = Metric("memory_per_idle_tunnel_client_bytes", "B", 0.15, higher=False)
IDLE_SERVER = Metric("memory_per_idle_tunnel_server_bytes", "B", 0.15, higher=False)
LOADED = Metric("memory_with_5000_tunnels_bytes", "B", 0.35, higher=False)
TABLE = (BULK_1, BULK_8, PING_16, PING_64, P50, P99, TUNNELS, IDLE, IDLE_CLIENT, IDLE_SERVER, LOADED)


@dataclass(slots=True)
class Samples:
    """The rounds of one metric: pairs measured one right after the other.

    Attributes:
        invalid: Why it must not be read as a number; "" if it may.
    """

    ours: list[float] = field(default_factory=list)
    envoy: list[float] = field(default_factory=list)
    invalid: str = ""


def row(metric: Metric, samples: Samples) -> dict[str, Any]:
    """One row for JSON.

    ``ratio`` is the median of the rounds' own ratios: both halves of a round share a moment of the machine,
    so this varies less than the ratio of the two medians.
    """
    ratio = ratio_of(samples)
    valid = not samples.invalid and math.isfinite(ratio)
    holds = valid and (ratio >= metric.bound if metric.higher else ratio <= metric.bound)
    found = {
        "metric": metric.name,
        "unit": metric.unit,
        "ours": median(samples.ours),
        "envoy": median(samples.envoy),
        "ratio": round(ratio, 3) if valid else None,
        "bound": metric.bound,
        "better": "higher" if metric.higher else "lower",
        "holds": holds,
        "n": min(len(samples.ours), len(samples.envoy)),
        "ours_p90": percentile(sorted(samples.ours), 0.9),
        "envoy_p90": percentile(sorted(samples.envoy), 0.9),
    }
    return found | ({"invalid": samples.invalid} if samples.invalid else {})


def ratio_of(samples: Samples) -> float:
    """Median of the ratios of the rounds; NaN if there is none."""
    ratios = [ours / envoy for ours, envoy in zip(samples.ours, samples.envoy, strict=False) if envoy]
    return statistics.median(ratios) if ratios else math.nan


def median(values: Sequence[float]) -> float:
    """Median, 0 of nothing."""
    return round(statistics.median(values), 1) if values else 0.0


def text_table(rows: Iterable[dict[str, Any]]) -> str:
    """For people."""
    lines = [f"{'METRIC':42} {'OURS':>14} {'ENVOY':>14} {'RATIO':>7} {'BOUND':>7}  HOLDS"]
    for each in rows:
        sign = ">=" if each["better"] == "higher" else "<="
        ratio = "invalid" if each["ratio"] is None else f"{each['ratio']:.2f}"
        lines.append(
            f"{each['metric']:42} {each['ours']:14,.0f} {each['envoy']:14,.0f} {ratio:>7} "
            f"{sign}{each['bound']:.2f}  {'yes' if each['holds'] else 'NO'}"
        )
    return "\n".join(lines)
