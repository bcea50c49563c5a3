"""How the comparison's figures are judged."""

from __future__ import annotations

import pytest

from benchmarks.bed.rows import BULK_1, P50, Samples, row, text_table


def test_the_ratio_is_that_of_the_rounds() -> None:
    """A round that met a busy moment met it twice: its ratio is as good as any other."""
    found = row(BULK_1, Samples(ours=[90.0, 9.0, 95.0], envoy=[100.0, 10.0, 100.0]))

    assert (found["ratio"], found["holds"], found["n"]) == (0.9, True, 3)
    assert (found["ours"], found["envoy"]) == (90.0, 100.0)


@pytest.mark.parametrize(("ours", "holds"), [(79.0, False), (80.0, True)])
def test_more_is_better_for_rates(ours: float, holds: bool) -> None:
    """The bound itself is still good."""
    assert row(BULK_1, Samples([ours], [100.0]))["holds"] is holds


@pytest.mark.parametrize(("ours", "holds"), [(106.0, False), (105.0, True)])
def test_less_is_better_for_latencies(ours: float, holds: bool) -> None:
    """The other way round."""
    assert row(P50, Samples([ours], [100.0]))["holds"] is holds


def test_an_accident_is_not_a_number() -> None:
    """A slow client must not make the proxies look alike."""
    found = row(BULK_1, Samples([100.0], [100.0], invalid="the load client was the bottleneck"))

    assert found["ratio"] is None
    assert not found["holds"]
    assert "invalid" in text_table([found])
