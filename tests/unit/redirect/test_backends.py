"""Which backend a name means."""

from __future__ import annotations

import pytest

from ambient.errors import ConfigError
from ambient.redirect import backend
from ambient.redirect.backends import IptablesLegacy, NftText, Nowhere, choose


@pytest.mark.parametrize(
    ("name", "kind"), [("nft", NftText), ("iptables", IptablesLegacy), ("loopback", Nowhere)]
)
def test_by_name(name: str, kind: type) -> None:
    """As AMBIENT_REDIRECT says."""
    assert isinstance(choose(name), kind)


def test_netlink_unless_told_otherwise() -> None:
    """It needs no program."""
    assert choose("") is choose("netlink") is backend


def test_an_unknown_one_is_named_with_those_there_are() -> None:
    """The agent refuses to start, rather than to capture in a way nobody asked for."""
    with pytest.raises(ConfigError, match="'ebpf' is none of netlink, nft, iptables, loopback"):
        choose("ebpf")
