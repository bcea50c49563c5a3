"""The cost model is arithmetic: check it by hand."""

from __future__ import annotations

import pytest

from ambient.bench import cost
from ambient.bench.cost import Used

GIB = 1024**3


def test_money_is_between_used_and_reserved() -> None:
    """One core and one GiB, no reservation known: all three are the same."""
    plain = cost.usd_per_month([Used("other", 1.0, GIB)])
    small = cost.usd_per_month([Used("ztunnel", 0.0, 0.0)])

    assert (
        plain["low"] == plain["mid"] == plain["high"] == pytest.approx(730 * (0.031611 + 0.004237), rel=1e-3)
    )
    assert small["low"] == 0
    assert small["high"] == pytest.approx(730 * (0.2 * 0.031611 + 0.5 * 0.004237), rel=1e-3)
    assert small["mid"] == pytest.approx(small["high"] / 2, rel=1e-3)


def test_power_and_carbon_keep_their_spread() -> None:
    """Watts per vCPU alone span 2.5x: one number would be a lie."""
    power = cost.watts([Used("sidecar", 1.0, 1e9)])

    assert power["low"] == pytest.approx(1.1 * (1.693 + 0.392))
    assert power["low"] < power["mid"] < power["high"]
    grams = cost.carbon(power, 1000.0)
    assert grams["mid"] == pytest.approx(power["mid"] / 1000 * (1e6 / 1000 / 3600) * 338)


def test_no_requests_no_carbon_per_request() -> None:
    """Not a division by zero."""
    assert cost.carbon({"low": 1.0, "mid": 1.0, "high": 1.0}, 0.0) == {"low": 0.0, "mid": 0.0, "high": 0.0}


def test_the_document_has_three_parts() -> None:
    """Each with low, mid and high."""
    found = cost.cost([Used("ztunnel", 0.1, GIB)], 100.0)

    assert set(found) == {"usd_per_month", "watts", "gco2e_per_million_requests"}
    assert all(set(part) == {"low", "mid", "high"} for part in found.values())
