"""Renewal comes in time, and failures do not come in herds."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ambient.pki.rotation_plan import (
    JITTER,
    LAST_RETRY_SECONDS,
    is_usable,
    renew_at,
    renewal_delay,
    retry_delay,
)

times = st.floats(0, 4e9)
spans = st.floats(1.0, 1e9)


@given(times, spans)
def test_renewal_always_comes_before_the_end(start: float, span: float) -> None:
    """Otherwise a certificate could run out while it is in use."""
    assert start <= renew_at(start, start + span) < start + span


@given(times, spans, times)
def test_the_delay_is_never_negative_and_ends_at_half_life(start: float, span: float, now: float) -> None:
    """A timer takes what this says as it is."""
    delay = renewal_delay(start, start + span, now)

    assert delay >= 0
    assert delay == 0 or abs(now + delay - renew_at(start, start + span)) < 1e-3


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_retries_are_bounded(failures: int, chance: float) -> None:
    """Not faster than half a second, not slower than two and a half minutes, give or take the jitter."""
    assert 0.39 < retry_delay(failures, chance) < LAST_RETRY_SECONDS * (1 + JITTER) + 0.01


def test_retries_double() -> None:
    """A CA that is down is asked less and less."""
    assert [retry_delay(n, 0.5) for n in (1, 2, 3, 4)] == [0.5, 1.0, 2.0, 4.0]


def test_usable_is_half_open() -> None:
    """At its last instant a certificate is over."""
    assert is_usable(10, 20, 10)
    assert not is_usable(10, 20, 20)
    assert not is_usable(10, 20, 9.9)
