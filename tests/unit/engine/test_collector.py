"""The collector is left alone by ordinary traffic, and still there for cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from ambient.engine import collector


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Other tests have the collector that they began with."""
    thresholds = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*thresholds)


def test_what_start_up_made_is_not_looked_at_again() -> None:
    """It stays as long as the process, so looking at it finds nothing."""
    collector.settle()

    assert gc.get_freeze_count() > 0
    assert gc.isenabled()


def test_a_batch_of_connections_does_not_start_it() -> None:
    """The default of 700 would: a new tunnel makes some 50 containers."""
    collector.settle()
    before = gc.get_stats()[0]["collections"]

    batch = [[number] for number in range(64 * 50)]

    assert len(batch) == 3200
    assert gc.get_stats()[0]["collections"] == before


def test_cycles_are_still_found() -> None:
    """A bug that makes one must not make the process grow for ever."""
    collector.settle()
    before = gc.get_stats()[0]["collections"]

    cycles = [[number] for number in range(2 * collector.THRESHOLDS[0])]

    assert cycles
    assert gc.get_stats()[0]["collections"] > before
