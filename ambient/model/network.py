"""Blocks of addresses as text, and whether an address is in one.

Floor 0. Parsed forms are remembered: policies ask the same blocks for every connection.
"""

from __future__ import annotations

import functools
import ipaddress

from ambient.errors import ConfigError
from ambient.model.address import canonical

# Distinct blocks and addresses whose number is remembered; picked, not measured.
_REMEMBERED = 16384


def canonical_network(text: str) -> str:
    """Return the one spelling of a CIDR block; a bare address is a block of one.

    Raises:
        ConfigError: not a block.
    """
    try:
        # Not strict: "10.0.0.1/8" is 10.0.0.0/8 to Istio too.
        network = ipaddress.ip_network(text, strict=False)
    except ValueError as exc:
        raise ConfigError(f"not an address or CIDR block: {text!r}") from exc
    if network.version == 6 and network.prefixlen >= 96:
        mapped = ipaddress.IPv6Address(network.network_address).ipv4_mapped
        if mapped is not None:
            return f"{mapped}/{network.prefixlen - 96}"
    return str(network)


def contains(block: str, ip: str) -> bool:
    """Whether canonical *block* holds *ip*."""
    version, network, mask = _network(block)
    ip_version, number = _number(ip)
    return version == ip_version and number & mask == network


@functools.lru_cache(maxsize=_REMEMBERED)
def _network(block: str) -> tuple[int, int, int]:
    network = ipaddress.ip_network(block)
    return network.version, int(network.network_address), int(network.netmask)


@functools.lru_cache(maxsize=_REMEMBERED)
def _number(ip: str) -> tuple[int, int]:
    address = ipaddress.ip_address(canonical(ip))
    return address.version, int(address)
