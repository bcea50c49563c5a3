"""Deadlines from the environment: every field has a name, every bad value is named."""

from __future__ import annotations

import dataclasses

import pytest

from ambient.errors import ConfigError
from ambient.model.durations import COUNTS, SECONDS, duration, read_limits
from ambient.model.limits import Limits


def test_the_defaults_are_the_promised_figures() -> None:
    """5 s handshake, 10 s answer, dial and first CONNECT, PING 10 s / 5 s, TCP_USER_TIMEOUT 15 s."""
    limits = read_limits({})
    assert limits == Limits()
    assert (limits.tls_handshake, limits.connect_answer, limits.dial, limits.first_connect) == (5, 10, 10, 10)
    assert (limits.ping_interval, limits.ping_timeout, limits.user_timeout) == (10, 5, 15)
    assert (limits.pool_idle, limits.streams_per_tunnel) == (300, 100)


def test_every_limit_can_be_set() -> None:
    """A field without a name would be a constant in disguise."""
    assert {field.name for field in dataclasses.fields(Limits)} == {*SECONDS, *COUNTS}
    environ = dict.fromkeys(SECONDS.values(), "1500ms") | dict.fromkeys(COUNTS.values(), "7")
    assert set(dataclasses.astuple(read_limits(environ))) == {1.5, 7}


@pytest.mark.parametrize(
    ("text", "seconds"), [("10", 10), ("10s", 10), ("1.5s", 1.5), ("500ms", 0.5), ("5m", 300), ("1h", 3600)]
)
def test_durations(text: str, seconds: float) -> None:
    """As Istio writes them, or as plain seconds."""
    assert duration("X", text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "1_0", "٣", " 5", "5 s", "1d", "nan", "inf", "1e3", "25h"])
def test_bad_durations_name_the_variable(text: str) -> None:
    """Python's own numbers are more generous than an operator expects."""
    with pytest.raises(ConfigError, match="POOL_UNUSED_RELEASE_TIMEOUT"):
        duration("POOL_UNUSED_RELEASE_TIMEOUT", text)


def test_the_user_timeout_can_be_switched_off() -> None:
    """By Istio's switch, or by zero."""
    assert read_limits({"USER_TIMEOUT_ENABLED": "false"}).user_timeout == 0
    assert read_limits({"AMBIENT_TCP_USER_TIMEOUT": "0"}).user_timeout == 0


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "1000000", "٣"])
def test_bad_counts_name_the_variable(text: str) -> None:
    """One stream at least, or nothing would ever be carried."""
    with pytest.raises(ConfigError, match="POOL_MAX_STREAMS_PER_CONNECTION"):
        read_limits({"POOL_MAX_STREAMS_PER_CONNECTION": text})
