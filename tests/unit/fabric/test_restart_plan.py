"""When a program that ended is started again."""

from __future__ import annotations

from ambient.fabric.restart_plan import HEALTHY_AFTER, LONGEST_DELAY, Backoff


def delays(lives: list[float]) -> list[float]:
    backoff, found = Backoff(), []
    for lived in lives:
        backoff = backoff.ended(lived)
        found.append(backoff.delay)
    return found


def test_the_first_restart_is_at_once_and_the_next_ones_wait_longer_each() -> None:
    """One crash should cost nothing; a crash loop should not burn a core."""
    assert delays([0.1] * 5) == [0.0, 1.0, 2.0, 4.0, 8.0]


def test_the_delay_is_bounded_for_ever() -> None:
    """A crash loop that ran all night is retried within a minute of its mend."""
    assert delays([0.1] * 5000)[-1] == LONGEST_DELAY


def test_a_long_life_is_forgiven() -> None:
    """A program that ran for hours and ended is not in a crash loop."""
    assert delays([0.1, 0.1, HEALTHY_AFTER]) == [0.0, 1.0, 0.0]
