"""Addresses as text: one spelling each, because they are dictionary keys on the data path.

Floor 0. Also reads the ``host:port`` of an HBONE ``:authority``, strictly: what has two spellings,
or means something else to another reader (octal octets, scope ids, user-info), is refused.
"""

from __future__ import annotations

import functools
import ipaddress
import re

from ambient.errors import ConfigError

# RFC 1035 section 2.3.4.
MAX_NAME_BYTES = 253
# The longest host:port that can be valid: a name, a colon, five digits.
MAX_AUTHORITY_BYTES = MAX_NAME_BYTES + 6
# Distinct addresses whose parsed form is remembered; picked, not measured.
_REMEMBERED = 4096

_PORT = re.compile(r"[1-9][0-9]{0,4}")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# The last label starts with a letter: "010.0.0.1" and "2130706433" are addresses to some resolvers.
_HOSTNAME = re.compile(rf"(?:{_LABEL}\.)*[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])?")


@functools.lru_cache(maxsize=_REMEMBERED)
def canonical(text: str) -> str:
    """Return the one spelling of the address *text*; an IPv4-mapped IPv6 address becomes IPv4.

    Raises:
        ConfigError: *text* is not an address, or names an interface (``fe80::1%eth0``).
    """
    if "%" in text:
        raise ConfigError(f"address with a scope id: {text!r}")
    try:
        address = ipaddress.ip_address(text)
    except ValueError as exc:
        raise ConfigError(f"not an IP address: {text!r}") from exc
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return address.compressed


def is_hostname(text: str) -> bool:
    """Whether *text* is a lower-case DNS name that no reader takes for an address."""
    return len(text) <= MAX_NAME_BYTES and _HOSTNAME.fullmatch(text) is not None


def parse_port(text: str) -> int:
    """Read a port: ASCII digits, no sign, no leading zero, 1..65535.

    Raises:
        ConfigError: *text* is anything else.
    """
    if not _PORT.fullmatch(text) or int(text) > 65535:
        raise ConfigError(f"not a port: {text[:64]!r}")
    return int(text)


def parse_hostport(authority: str) -> tuple[str, int]:
    """Split ``10.0.0.1:80``, ``[fd00::1]:80`` or ``web.shop:80`` into canonical host and port.

    Names come back in lower case. ``parse_hostport(format_hostport(host, port))`` is ``(host, port)``.

    Raises:
        ConfigError: a part is missing or has no single meaning.
    """
    if len(authority) > MAX_AUTHORITY_BYTES:
        raise ConfigError(f"authority over {MAX_AUTHORITY_BYTES} bytes")
    host, colon, port = authority.rpartition(":")
    if not colon:
        raise ConfigError(f"authority without a port: {authority!r}")
    return _host(host, authority), parse_port(port)


def _host(text: str, authority: str) -> str:
    if text.startswith("[") and text.endswith("]"):
        if ":" not in text:
            raise ConfigError(f"brackets are for IPv6: {authority!r}")
        return canonical(text[1:-1])
    if ":" in text:
        raise ConfigError(f"IPv6 without brackets: {authority!r}")
    if text[-1:].isdigit() and text.isascii() and "." in text and not is_hostname(text):
        return canonical(text)
    # Only ASCII is folded: "K" (the Kelvin sign) must not become "k".
    lowered = text.lower() if text.isascii() else text
    if not is_hostname(lowered):
        raise ConfigError(f"neither an address nor a name: {authority!r}")
    return lowered


def format_hostport(host: str, port: int) -> str:
    """Join host and port, with brackets around IPv6."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_ipv6(address: str) -> bool:
    """Whether canonical *address* is IPv6."""
    return ":" in address
