"""The timer as a descriptor."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator

import pytest

from ambient.engine.alarm import Alarm

SECOND = 1_000_000_000


@pytest.fixture
def alarm() -> Iterator[Alarm]:
    made = Alarm()
    yield made
    made.close()


def readable(alarm: Alarm, timeout: float) -> bool:
    return bool(select.select([alarm], [], [], timeout)[0])


def test_it_fires_once_and_not_before(alarm: Alarm) -> None:
    """A deadline that comes early would end a connection that is well."""
    when = time.monotonic_ns() + SECOND // 20
    alarm.set_at(when)

    assert readable(alarm, 10)
    assert time.monotonic_ns() >= when
    alarm.clear()
    alarm.clear()
    assert not readable(alarm, 0)


def test_a_time_in_the_past_is_now(alarm: Alarm) -> None:
    """Whoever is late must not wait for ever."""
    alarm.set_at(time.monotonic_ns() - SECOND)

    assert readable(alarm, 10)


def test_setting_it_again_is_what_counts(alarm: Alarm) -> None:
    """The earliest deadline may be cancelled, or another may come before it."""
    alarm.set_at(time.monotonic_ns() + 1000 * SECOND)
    alarm.set_at(time.monotonic_ns() + SECOND // 100)

    assert readable(alarm, 10)
