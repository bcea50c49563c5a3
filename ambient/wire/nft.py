"""The words of nf_tables rules that a mesh needs, as values.

Floor 1: no I/O and no encoding: ``nft_encode`` turns these values into netlink messages and
``ambient.redirect.text`` into what ``nft -f`` reads. One vocabulary with two spellings is how each
can check the other.

Everything is in the ``inet`` family, so that one rule set serves IPv4 and IPv6.

Source: nft(8); Linux ``include/uapi/linux/netfilter/nf_tables.h``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import TypeAlias


class L4(IntEnum):
    """Transport protocols by their IP number."""

    TCP = 6
    UDP = 17


class Hook(IntEnum):
    """Where in a packet's way a base chain stands (NF_INET_*)."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


# Priorities of base chains (linux/netfilter_ipv4.h).
MANGLE, DSTNAT, FILTER, SRCNAT = -150, -100, 0, 100


class End(Enum):
    """Which of a packet's two ends an address match means."""

    SOURCE = "saddr"
    DESTINATION = "daddr"


class Way(Enum):
    """Which of a packet's two interfaces a match means."""

    IN = "iifname"
    OUT = "oifname"


# Matches: the rule goes on only if they hold.


@dataclass(frozen=True, slots=True)
class PacketMark:
    """The packet's mark under *mask* is *value*."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class ConnectionMark:
    """The connection's (conntrack's) mark under *mask* is *value*."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class Translated:
    """The destination of its connection was rewritten (DNAT)."""


@dataclass(frozen=True, slots=True)
class Interface:
    """It came in by, or goes out by, the interface *name*."""

    way: Way
    name: str


@dataclass(frozen=True, slots=True)
class Address:
    """Its source or destination lies in *network*, an address or CIDR of either family."""

    end: End
    network: str


@dataclass(frozen=True, slots=True)
class Transport:
    """It is of *protocol*."""

    protocol: L4


@dataclass(frozen=True, slots=True)
class DestinationPort:
    """It is of *protocol* and goes to *port* (or, negated, to any other)."""

    protocol: L4
    port: int
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Syn:
    """It is the first packet of a TCP connection: SYN without FIN, RST and ACK."""


@dataclass(frozen=True, slots=True)
class ToThisHost:
    """Its destination is an address of this namespace."""


@dataclass(frozen=True, slots=True)
class Chance:
    """True for one packet in *of*, at random."""

    of: int


# Statements: what the rule does.


@dataclass(frozen=True, slots=True)
class Accept:
    """Leave this hook's chain."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Throw the packet away; its sender hears nothing."""


@dataclass(frozen=True, slots=True)
class Goto:
    """Go on in another chain and do not come back."""

    chain: str


@dataclass(frozen=True, slots=True)
class Count:
    """Count packets and bytes."""


@dataclass(frozen=True, slots=True)
class MarkConnection:
    """Set the bits *mask* of the connection's mark to *value*."""

    value: int
    mask: int


@dataclass(frozen=True, slots=True)
class RestoreMark:
    """Give the packet its connection's mark."""


@dataclass(frozen=True, slots=True)
class ToProxy:
    """Deliver to the transparent listener on *port*, destination unchanged (TPROXY)."""

    port: int


@dataclass(frozen=True, slots=True)
class Redirect:
    """Rewrite the destination to this host's *port* (REDIRECT)."""

    port: int


@dataclass(frozen=True, slots=True)
class Translate:
    """Rewrite the destination to *ip* and *port* (DNAT)."""

    ip: str
    port: int


@dataclass(frozen=True, slots=True)
class Masquerade:
    """Rewrite the source to this host's address."""


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer "port unreachable", or, with *reset*, a TCP reset (which no rate limit holds back)."""

    reset: bool = False


Term: TypeAlias = (
    PacketMark
    | ConnectionMark
    | Translated
    | Interface
    | Address
    | Transport
    | DestinationPort
    | Syn
    | ToThisHost
    | Chance
    | Accept
    | Drop
    | Goto
    | Count
    | MarkConnection
    | RestoreMark
    | ToProxy
    | Redirect
    | Translate
    | Masquerade
    | Reject
)
Rule: TypeAlias = tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Base:
    """What makes a chain a base chain: the kernel runs it at *hook*.

    Attributes:
        kind: ``"filter"``, ``"nat"`` or ``"route"``.
    """

    kind: str
    hook: Hook
    priority: int


@dataclass(frozen=True, slots=True)
class Chain:
    """Rules in order; without *base* it runs only where a ``Goto`` leads."""

    name: str
    rules: tuple[Rule, ...]
    base: Base | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the ``inet`` family."""

    name: str
    chains: tuple[Chain, ...]
