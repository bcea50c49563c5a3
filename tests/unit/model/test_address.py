"""Addresses have one spelling, and an authority has one meaning."""

from __future__ import annotations

import pytest

from ambient.errors import ConfigError
from ambient.model.address import canonical, format_hostport, is_hostname, is_ipv6, parse_hostport


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("FD00:0:0::0001", "fd00::1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
    ],
    ids=["v4", "v6", "v4-mapped"],
)
def test_an_address_has_one_spelling(text: str, expected: str) -> None:
    """Addresses are dictionary keys: a second spelling would be a second workload."""
    assert canonical(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fe80::1%eth0", "address with a scope id: 'fe80::1%eth0'"),
        ("010.0.0.1", "not an IP address: '010.0.0.1'"),
        ("web", "not an IP address: 'web'"),
        ("", "not an IP address: ''"),
    ],
    ids=["scope", "octal", "name", "empty"],
)
def test_what_is_no_address_is_refused(text: str, message: str) -> None:
    """A scope id means another thing in every namespace."""
    with pytest.raises(ConfigError) as caught:
        canonical(text)

    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("authority", "expected"),
    [
        ("10.0.0.1:80", ("10.0.0.1", 80)),
        ("[FD00::1]:15008", ("fd00::1", 15008)),
        ("[::ffff:10.0.0.1]:80", ("10.0.0.1", 80)),
        ("Reviews.bookinfo:65535", ("reviews.bookinfo", 65535)),
        ("v1:80", ("v1", 80)),
        ("1st.web:80", ("1st.web", 80)),
    ],
    ids=["v4", "v6", "mapped", "name", "ends-in-digit", "starts-with-digit"],
)
def test_an_authority_is_split(authority: str, expected: tuple[str, int]) -> None:
    """What Istio's ztunnel sends is understood."""
    assert parse_hostport(authority) == expected


@pytest.mark.parametrize(
    "authority",
    [
        *["10.0.0.5", ":80", "h:0", "h:65536", "h:-1", "h:+80", "h:8_0", "h:０８", "h:080", "h:", "", ":"],
        *["[::1", "[fe80::1%eth0]:80", "::1:80", "[10.0.0.1]:80", "[web]:80", "[]:80"],
        *["010.0.0.1:80", "0x7f.1:80", "2130706433:80", "1.2.3:80", "user@h:80", "h:80/path", "h :80"],
        *["a" * 300 + ":80", "a.:80", "-a:80", "a_b:80", "\u212a:80", "h:80\n"],
    ],
    ids=ascii,
)
def test_an_authority_with_two_readings_is_refused(authority: str) -> None:
    """Policy must not be asked about another target than the one that is dialled."""
    with pytest.raises(ConfigError):
        parse_hostport(authority)


def test_names_and_families_are_told_apart() -> None:
    """Brackets are for IPv6 only; a name never looks like an address."""
    assert format_hostport("fd00::1", 80) == "[fd00::1]:80"
    assert format_hostport("web", 80) == "web:80"
    assert is_ipv6("fd00::1")
    assert not is_ipv6("10.0.0.1")
    assert not is_hostname("10.0.0.1")
    assert not is_hostname("a" * 254)
