"""How much is logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.errors import ConfigError
from ztunnel.levels import OFF, SCOPES, Levels, parse_levels


@pytest.fixture
def levels() -> Iterator[Levels]:
    """Levels whose effect on the logging module is undone."""
    before = {name: logging.getLogger(name).level for name in ("", *SCOPES)}
    yield Levels()
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("info", {"": logging.INFO}),
        ("access:debug,info", {"access": logging.DEBUG, "": logging.INFO}),
        ("ztunnel=WARN", {"ztunnel": logging.WARNING}),
        ("off, dns=trace", {"": OFF, "dns": logging.DEBUG}),
    ],
)
def test_istios_two_shapes(text: str, expected: dict[str, int]) -> None:
    """RUST_LOG's and istioctl's."""
    assert parse_levels(text) == expected


@pytest.mark.parametrize(
    "text", ["", "loud", "h2=off", "access=", "=info", "info,debug", "access=info,access=off", "i" * 600, ","]
)
def test_nonsense_is_refused(text: str) -> None:
    """Whoever mistypes a level must not believe that it is set."""
    with pytest.raises(ConfigError):
        parse_levels(text)


@given(st.text(max_size=100))
def test_no_text_raises_anything_else(text: str) -> None:
    """Law."""
    with suppress(ConfigError):
        parse_levels(text)


def test_levels_are_applied_kept_and_taken_back(levels: Levels) -> None:
    """What is not named stays as it was set before."""
    levels.apply(parse_levels("access=error"))
    levels.apply(parse_levels("ztunnel:debug"))

    assert str(levels) == "access=error,ztunnel=debug,info"
    assert levels.access == logging.ERROR
    assert logging.getLogger("ztunnel").level == logging.DEBUG

    levels.reset()

    assert str(levels) == "info"
    assert levels.access == logging.INFO
    assert logging.getLogger("ztunnel").level == logging.NOTSET
