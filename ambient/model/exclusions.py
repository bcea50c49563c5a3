"""What of a pod's traffic its owner wants left alone, as annotations say it.

Floor 0. Source: Istio's annotations of sidecars (``traffic.sidecar.istio.io``), obeyed here for ambient
mode too (asked for in istio#49829). Istio has no word for inbound networks; the twin of the outbound one
stands for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import TypeVar

from ambient.errors import ConfigError

T = TypeVar("T")

PREFIX = "traffic.sidecar.istio.io/"
OUTBOUND_PORTS = f"{PREFIX}excludeOutboundPorts"
OUTBOUND_RANGES = f"{PREFIX}excludeOutboundIPRanges"
INBOUND_PORTS = f"{PREFIX}excludeInboundPorts"
INBOUND_RANGES = f"{PREFIX}excludeInboundIPRanges"
# Each is a rule that every new connection passes; picked, not measured.
MAX_ENTRIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Exclusions:
    """TCP ports, and networks in canonical form of either family."""

    outbound_ports: tuple[int, ...] = ()
    outbound_ranges: tuple[str, ...] = ()
    inbound_ports: tuple[int, ...] = ()
    inbound_ranges: tuple[str, ...] = ()


NO_EXCLUSIONS = Exclusions()


def exclusions_of(annotations: Mapping[str, str]) -> Exclusions:
    """Read a pod's annotations: comma-separated lists, order and repetition without meaning.

    Raises:
        ConfigError: an entry is no port or no network; the annotation is named.
    """
    return Exclusions(
        outbound_ports=_ports(annotations, OUTBOUND_PORTS),
        outbound_ranges=_ranges(annotations, OUTBOUND_RANGES),
        inbound_ports=_ports(annotations, INBOUND_PORTS),
        inbound_ranges=_ranges(annotations, INBOUND_RANGES),
    )


def _ports(annotations: Mapping[str, str], name: str) -> tuple[int, ...]:
    return tuple(sorted({_read(_port, each, name) for each in _entries(annotations, name)}))


def _ranges(annotations: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(sorted({_read(_network, each, name) for each in _entries(annotations, name)}))


def _entries(annotations: Mapping[str, str], name: str) -> list[str]:
    text = annotations.get(name, "")
    entries = [each.strip() for each in text.split(",")] if text.strip() else []
    if len(entries) > MAX_ENTRIES:
        raise ConfigError(f"annotation {name}: {len(entries)} entries, limit {MAX_ENTRIES}")
    return entries


def _read(parse: Callable[[str], T], text: str, name: str) -> T:
    try:
        return parse(text)
    except ValueError as exc:
        raise ConfigError(f"annotation {name}: {exc}") from exc


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or not 1 <= int(text) <= 65535:
        raise ValueError(f"not a port 1 to 65535: {text!r}")
    return int(text)


def _network(text: str) -> str:
    if "%" in text:
        raise ValueError(f"not a network such as 10.0.0.0/8: {text!r}")
    try:
        return str(ip_network(text))
    except ValueError as exc:
        why = "has host bits set" if "host bits" in str(exc) else "not a network such as 10.0.0.0/8"
        raise ValueError(f"{why}: {text!r}") from exc
