"""What the measured CPU and memory would cost: a simple, stated model, always with its spread.

Floor 5, pure. Absolute CPU does not carry over between test beds (published figures for one and the same
sidecar span 5.6x), so these are for comparing modes of one run, not for a budget.

Money: low is what the proxies used; high is what Istio's charts reserve for them, where that is more; mid is
half way. Watts: what the used CPU draws above idle nothing, times the data centre's overhead, plus memory.
Carbon: those watts at the grid's intensity, per million requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Spread: TypeAlias = dict[str, float]

# OpenCost defaults; 730 hours are a month of 365/12 days.
USD_PER_VCPU_HOUR = 0.031611
USD_PER_GIB_HOUR = 0.004237
HOURS_PER_MONTH = 730.0
# Istio Helm charts: requests in vCPU and MiB.
RESERVED = {"sidecar": (0.1, 128.0), "waypoint": (0.1, 128.0), "ztunnel": (0.2, 512.0)}
# Cloud Carbon Footprint. W per busy vCPU: EPYC-2 and Graviton, AWS' mean, Skylake. PUE: GCP, AWS, Azure.
WATTS_PER_VCPU: Spread = {"low": 1.693, "mid": 3.5, "high": 4.193}
PUE: Spread = {"low": 1.1, "mid": 1.135, "high": 1.185}
WATTS_PER_GB = 0.392
# gCO2e per kWh: eu-north-1, eu-central-1, ap-southeast-2.
GRID: Spread = {"low": 8.0, "mid": 338.0, "high": 790.0}

_GIB = 1024.0**3


@dataclass(frozen=True, slots=True)
class Used:
    """What one proxy used: processors and bytes, on average over the load."""

    role: str
    cores: float
    memory_bytes: float


def cost(proxies: Sequence[Used], requests_per_second: float) -> dict[str, Spread]:
    """The ``cost`` object of a mode."""
    power = watts(proxies)
    return {
        "usd_per_month": usd_per_month(proxies),
        "watts": _rounded(power),
        "gco2e_per_million_requests": _rounded(carbon(power, requests_per_second)),
    }


def usd_per_month(proxies: Sequence[Used]) -> Spread:
    """Money for CPU and memory, used and reserved."""
    used = sum(_price(one.cores, one.memory_bytes / _GIB) for one in proxies)
    reserved = sum(_price(*_at_least_reserved(one)) for one in proxies)
    return _rounded({"low": used, "mid": (used + reserved) / 2, "high": reserved})


def _at_least_reserved(one: Used) -> tuple[float, float]:
    cores, mebibytes = RESERVED.get(one.role, (0.0, 0.0))
    return max(cores, one.cores), max(mebibytes / 1024, one.memory_bytes / _GIB)


def _price(cores: float, gibibytes: float) -> float:
    return HOURS_PER_MONTH * (cores * USD_PER_VCPU_HOUR + gibibytes * USD_PER_GIB_HOUR)


def watts(proxies: Sequence[Used]) -> Spread:
    """Electrical power for the used CPU and memory, overhead of the data centre included."""
    cores = sum(one.cores for one in proxies)
    gigabytes = sum(one.memory_bytes for one in proxies) / 1e9
    return {k: PUE[k] * (cores * WATTS_PER_VCPU[k] + gigabytes * WATTS_PER_GB) for k in WATTS_PER_VCPU}


def carbon(power: Mapping[str, float], requests_per_second: float) -> Spread:
    """Grams of CO2 equivalent for a million requests at this rate; embodied carbon is left out."""
    if requests_per_second <= 0:
        return dict.fromkeys(power, 0.0)
    hours = 1e6 / requests_per_second / 3600
    return {key: value / 1000 * hours * GRID[key] for key, value in power.items()}


def _rounded(values: Mapping[str, float]) -> Spread:
    return {key: round(value, 4) for key, value in values.items()}
