"""Blocks of addresses."""

from __future__ import annotations

import pytest

from ambient.errors import ConfigError
from ambient.model.network import canonical_network, contains


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", "10.0.0.1/32"),
        ("10.0.0.1/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("FD00::1/64", "fd00::/64"),
        ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
        ("fd00::1", "fd00::1/128"),
    ],
)
def test_a_block_has_one_spelling(text: str, expected: str) -> None:
    """An IPv4 block written as IPv6 guards IPv4."""
    assert canonical_network(text) == expected


@pytest.mark.parametrize("text", ["10.0.0.0/33", "web", "10.0.0.0/", "", "10.0.0.0/-1"])
def test_what_is_no_block_is_refused(text: str) -> None:
    """A policy that guards nothing is worse than an error."""
    with pytest.raises(ConfigError, match="not an address or CIDR block"):
        canonical_network(text)


def test_an_address_is_in_its_block_only() -> None:
    """Families never meet, and /0 is everything of one."""
    assert contains("0.0.0.0/0", "10.0.0.1")
    assert not contains("0.0.0.0/0", "fd00::1")
    assert not contains("10.0.0.0/8", "11.0.0.1")
