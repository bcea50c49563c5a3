"""The connections that a namespace's conntrack remembers: list those redirected, forget one or all of a mark.

Floor 1: sans-IO.

Source: linux/netfilter/nfnetlink_conntrack.h. Ports and marks are in network order.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from ambient.wire.netlink import (
    AF_UNSPEC,
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_DUMP,
    Message,
    Request,
    attribute,
    attributes,
    be32,
)

_SUBSYSTEM = 1 << 8
CT_GET, CT_DELETE, CT_GET_STATS = _SUBSYSTEM | 1, _SUBSYSTEM | 2, _SUBSYSTEM | 5
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_STATUS, CTA_MARK, CTA_ID, CTA_ZONE = 1, 2, 3, 8, 12, 18
CTA_MARK_MASK, CTA_STATUS_MASK = 21, 26
# linux/netfilter/nf_conntrack_common.h: its destination was rewritten.
IPS_DST_NAT = 1 << 5
CTA_TUPLE_PROTO, CTA_PROTO_SRC_PORT = 2, 2
CTA_STATS_GLOBAL_ENTRIES = 1

# struct nfgenmsg: family, version, resource.
_HEADER = struct.Struct("!BBH")


@dataclass(frozen=True, slots=True)
class Tracked:
    """One connection.

    Attributes:
        answered_from: The port that the answers to it come from; 0 for what has no ports.
        name: The kernel's name for it, to say which is meant.
    """

    family: int
    answered_from: int
    name: bytes


def dump_redirected() -> Request:
    """Ask for the connections of both families whose destination was rewritten.

    An old kernel does not choose, and lists all.
    """
    body = _HEADER.pack(AF_UNSPEC, 0, 0) + be32(CTA_STATUS, IPS_DST_NAT) + be32(CTA_STATUS_MASK, IPS_DST_NAT)
    return Request(CT_GET, body, "list tracked connections", NLM_F_DUMP)


def forget_all() -> Request:
    """Forget all, by one walk of the kernel's."""
    return Request(CT_DELETE, _HEADER.pack(AF_UNSPEC, 0, 0), "forget tracked connections", NLM_F_ACK)


def forget_marked(mark: int, mask: int) -> Request:
    """Forget all with this mark, by one walk of the kernel's.

    Not for a kernel before 4.0, which would forget everything.
    """
    body = _HEADER.pack(AF_UNSPEC, 0, 0) + be32(CTA_MARK, mark) + be32(CTA_MARK_MASK, mask)
    return Request(CT_DELETE, body, "forget tracked connections", NLM_F_ACK)


def ask_count() -> Request:
    """Ask how many there are; one answer."""
    return Request(CT_GET_STATS, _HEADER.pack(AF_UNSPEC, 0, 0), "count tracked connections")


def decode_count(message: Message) -> int:
    """Read the answer to ``ask_count``."""
    found = attributes(message.body[_HEADER.size :])
    return int.from_bytes(found.get(CTA_STATS_GLOBAL_ENTRIES, b""), "big")


def forget(tracked: Tracked) -> Request:
    """Forget one; refused with ENOENT if it is gone, or if another has taken its place."""
    body = _HEADER.pack(tracked.family, 0, 0) + tracked.name
    return Request(CT_DELETE, body, "forget a tracked connection", NLM_F_ACK)


def decode(message: Message) -> Tracked:
    """Read one of the answers to ``dump_redirected``."""
    family = message.body[0]
    found = attributes(message.body[_HEADER.size :])
    name = attribute(CTA_TUPLE_ORIG | NLA_F_NESTED, found[CTA_TUPLE_ORIG])
    name += b"".join(attribute(each, found[each]) for each in (CTA_ID, CTA_ZONE) if each in found)
    protocol = attributes(attributes(found[CTA_TUPLE_REPLY]).get(CTA_TUPLE_PROTO, b""))
    return Tracked(
        family=family,
        answered_from=int.from_bytes(protocol.get(CTA_PROTO_SRC_PORT, b""), "big"),
        name=name,
    )
