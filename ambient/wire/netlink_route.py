"""Links, addresses, routes, routing rules and neighbours, as rtnetlink messages.

Floor 1: sans-IO. Addresses are text; everything is named as ip(8) names it.

Source: rtnetlink(7); linux/{if_link,if_addr,rtnetlink,fib_rules,neighbour,veth}.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from ambient.errors import RemoteProtocolError
from ambient.wire.netlink import (
    AF_INET,
    AF_INET6,
    AF_UNSPEC,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Message,
    Request,
    attribute,
    attributes,
    nested,
    number,
    string,
    text,
    u8,
    u32,
)

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH = 28
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34

IFF_UP = 1
IFLA_ADDRESS = 1
IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_LINKINFO, IFLA_NET_NS_PID = 3, 4, 5, 18, 19
IFLA_STATS64, IFLA_AF_SPEC, IFLA_NET_NS_FD = 23, 26, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE = 8, 1
# Interface names are at most IFNAMSIZ (16) bytes with the zero.
MAX_LINK_NAME_BYTES = 15

IFA_ADDRESS, IFA_LOCAL, IFA_FLAGS = 1, 2, 8
# Usable at once: without it an IPv6 address waits up to two seconds for duplicate address detection.
IFA_F_NODAD = 0x02

RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 7, 15
RTN_UNICAST, RTN_LOCAL = 1, 2
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_SCOPE_HOST = 0, 253, 254
RT_TABLE_MAIN, RTPROT_BOOT = 254, 3
RTNH_F_ONLINK = 4

FRA_PRIORITY, FRA_FWMARK, FRA_TABLE, FRA_FWMASK = 6, 10, 15, 16
FR_ACT_TO_TBL = 1

NDA_DST, NDA_LLADDR, NUD_PERMANENT = 1, 2, 0x80

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
# Where it has the table, if that is below 256.
_TABLE_AT = 4
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
# The first eight of rtnl_link_stats64: packets, bytes, errors, dropped; each received, sent.
_STATISTICS = struct.Struct("=8Q")

_ADD = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL
_SET = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One interface and its counters.

    Attributes:
        peer_index: Of a veth: the index of its other end, in that end's namespace; else 0.
        mac: Its hardware address, b"" if it has none.
    """

    index: int
    name: str
    mtu: int
    up: bool
    kind: str
    peer_index: int
    received_bytes: int
    sent_bytes: int
    received_packets: int
    sent_packets: int
    received_dropped: int
    sent_dropped: int
    mac: bytes = b""


@dataclass(frozen=True, slots=True)
class Address:
    """One address of an interface, as ``"10.244.1.2/32"``."""

    link_index: int
    cidr: str


@dataclass(frozen=True, slots=True)
class Route:
    """One route; *destination* is ``"default"`` or a network, *gateway* may be ""."""

    destination: str
    gateway: str
    link_index: int
    table: int
    kind: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One routing rule: packets of *family* whose mark under *mask* is *mark* use *table*."""

    family: int
    priority: int
    mark: int
    mask: int
    table: int


def add_veth(
    name: str, peer: str, *, peer_netns_fd: int | None = None, peer_netns_pid: int = 0, mtu: int = 0
) -> Request:
    """A pair of links; the peer may start life in another namespace."""
    end = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _link_values(peer, mtu, peer_netns_fd, peer_netns_pid)
    info = nested(
        IFLA_LINKINFO,
        string(IFLA_INFO_KIND, "veth"),
        nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, end)),
    )
    body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _link_values(name, mtu, None, 0) + info
    return Request(RTM_NEWLINK, body, f"add veth {name} and {peer}", _ADD)


def change_link(
    name: str,
    *,
    up: bool | None = None,
    mtu: int = 0,
    netns_fd: int | None = None,
    link_local: bool | None = None,
) -> Request:
    """Set what is named; ``link_local=False`` stops automatic fe80:: addresses."""
    flags = IFF_UP if up else 0
    body = _LINK.pack(AF_UNSPEC, 0, 0, flags, 0 if up is None else IFF_UP)
    body += _link_values(name, mtu, netns_fd, 0)
    if link_local is not None:
        mode = u8(IFLA_INET6_ADDR_GEN_MODE, 0 if link_local else IN6_ADDR_GEN_MODE_NONE)
        body += nested(IFLA_AF_SPEC, nested(AF_INET6, mode))
    return Request(RTM_NEWLINK, body, f"set link {name}")


def delete_link(name: str) -> Request:
    """Delete a link; a veth takes its peer along."""
    return Request(
        RTM_DELLINK, _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _link_values(name, 0, None, 0), f"delete {name}"
    )


def get_link(name: str) -> Request:
    """Ask for one link; answered by a single message."""
    body = _LINK.pack(AF_UNSPEC, 0, 0, 0, 0) + _link_values(name, 0, None, 0)
    return Request(RTM_GETLINK, body, f"find link {name}")


def dump_links() -> Request:
    """Ask for every link."""
    return Request(RTM_GETLINK, _LINK.pack(AF_UNSPEC, 0, 0, 0, 0), "list links", NLM_F_DUMP)


def add_address(cidr: str, link_index: int) -> Request:
    """Give a link an address, usable at once (no duplicate address detection)."""
    return _address(RTM_NEWADDR, cidr, link_index, "add", _SET)


def delete_address(cidr: str, link_index: int) -> Request:
    """Take an address away."""
    return _address(RTM_DELADDR, cidr, link_index, "delete", NLM_F_ACK)


def dump_addresses() -> Request:
    """Ask for every address."""
    return Request(RTM_GETADDR, _ADDRESS.pack(AF_UNSPEC, 0, 0, 0, 0), "list addresses", NLM_F_DUMP)


def add_route(
    destination: str,
    *,
    link_index: int = 0,
    gateway: str = "",
    source: str = "",
    table: int = RT_TABLE_MAIN,
    local: bool = False,
    onlink: bool = False,
) -> Request:
    """Add or replace a route.

    Args:
        destination: A network as ``"10.244.1.7/32"``; ``"0.0.0.0/0"`` and ``"::/0"`` are the defaults.
        local: Deliver to this machine (``ip route add local``) instead of forwarding.
        onlink: Trust that *gateway* is a neighbour although no route says so.
        source: The source address to prefer.
    """
    body = _route(destination, link_index, gateway, source, table, local, onlink)
    return Request(RTM_NEWROUTE, body, f"add route {destination}", _SET)


def delete_route(destination: str, *, table: int = RT_TABLE_MAIN, local: bool = False) -> Request:
    """Delete a route."""
    body = _route(destination, 0, "", "", table, local, False)
    return Request(RTM_DELROUTE, body, f"delete route {destination}")


def dump_routes(family: int) -> Request:
    """Ask for every route of a family, all tables."""
    return Request(RTM_GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "list routes", NLM_F_DUMP)


def add_rule(rule: Rule) -> Request:
    """Add a routing rule; EEXIST if it stands."""
    return Request(RTM_NEWRULE, _rule(rule), f"add ip rule {rule.priority}", _ADD)


def delete_rule(rule: Rule) -> Request:
    """Delete a routing rule."""
    return Request(RTM_DELRULE, _rule(rule), f"delete ip rule {rule.priority}")


def dump_rules(family: int) -> Request:
    """Ask for every routing rule of a family."""
    return Request(RTM_GETRULE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0), "list ip rules", NLM_F_DUMP)


def add_neighbour(ip: str, link_index: int, mac: bytes) -> Request:
    """Say once and for all which hardware address *ip* has."""
    body = _NEIGHBOUR.pack(_family(ip), link_index, NUD_PERMANENT, 0, 0)
    body += attribute(NDA_DST, _packed(ip)) + attribute(NDA_LLADDR, mac)
    return Request(RTM_NEWNEIGH, body, f"add neighbour {ip}", _SET)


def decode_link(message: Message) -> Link:
    """Read an RTM_NEWLINK message."""
    _, _, index, flags, _ = _unpack(_LINK, message)
    found = attributes(message.body[_LINK.size :])
    counts = (0,) * 8
    if len(found.get(IFLA_STATS64, b"")) >= _STATISTICS.size:
        counts = _STATISTICS.unpack_from(found[IFLA_STATS64])
    return Link(
        index=index,
        name=text(found.get(IFLA_IFNAME, b"")),
        mtu=number(found.get(IFLA_MTU)),
        up=bool(flags & IFF_UP),
        kind=text(attributes(found.get(IFLA_LINKINFO, b"")).get(IFLA_INFO_KIND, b"")),
        peer_index=number(found.get(IFLA_LINK)),
        received_packets=counts[0],
        sent_packets=counts[1],
        received_bytes=counts[2],
        sent_bytes=counts[3],
        received_dropped=counts[6],
        sent_dropped=counts[7],
        mac=found.get(IFLA_ADDRESS, b""),
    )


def decode_address(message: Message) -> Address:
    """Read an RTM_NEWADDR message."""
    _, prefix, _, _, index = _unpack(_ADDRESS, message)
    found = attributes(message.body[_ADDRESS.size :])
    raw = found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b"")
    return Address(index, f"{_text_address(raw)}/{prefix}")


def is_of(table: int | None, message: Message) -> bool:
    """Whether a route or rule is of *table*, one below 256; None is any."""
    return table is None or message.body[_TABLE_AT : _TABLE_AT + 1] == bytes((table,))


def decode_route(message: Message) -> Route:
    """Read an RTM_NEWROUTE message."""
    _, prefix, _, _, table, _, _, kind, _ = _unpack(_ROUTE, message)
    found = attributes(message.body[_ROUTE.size :])
    destination = f"{_text_address(found[RTA_DST])}/{prefix}" if RTA_DST in found else "default"
    gateway = _text_address(found[RTA_GATEWAY]) if RTA_GATEWAY in found else ""
    return Route(
        destination, gateway, number(found.get(RTA_OIF)), number(found.get(RTA_TABLE)) or table, kind
    )


def decode_rule(message: Message) -> Rule:
    """Read an RTM_NEWRULE message."""
    family, _, _, _, table, _, _, _, _ = _unpack(_ROUTE, message)
    found = attributes(message.body[_ROUTE.size :])
    return Rule(
        family,
        number(found.get(FRA_PRIORITY)),
        number(found.get(FRA_FWMARK)),
        number(found.get(FRA_FWMASK)),
        number(found.get(FRA_TABLE)) or table,
    )


def _link_values(name: str, mtu: int, netns_fd: int | None, netns_pid: int) -> bytes:
    values = string(IFLA_IFNAME, name)
    if mtu:
        values += u32(IFLA_MTU, mtu)
    if netns_fd is not None:
        values += u32(IFLA_NET_NS_FD, netns_fd)
    if netns_pid:
        values += u32(IFLA_NET_NS_PID, netns_pid)
    return values


def _address(kind: int, cidr: str, link_index: int, verb: str, flags: int) -> Request:
    ip, _, prefix = cidr.partition("/")
    raw = _packed(ip)
    body = _ADDRESS.pack(_family(ip), int(prefix or 8 * len(raw)), 0, RT_SCOPE_UNIVERSE, link_index)
    body += attribute(IFA_LOCAL, raw) + attribute(IFA_ADDRESS, raw) + u32(IFA_FLAGS, IFA_F_NODAD)
    return Request(kind, body, f"{verb} address {cidr}", flags)


def _route(
    destination: str, link_index: int, gateway: str, source: str, table: int, local: bool, onlink: bool
) -> bytes:
    network = ip_network(destination)
    family = AF_INET if network.version == 4 else AF_INET6
    kind = RTN_LOCAL if local else RTN_UNICAST
    flags = RTNH_F_ONLINK if onlink else 0
    scope = _scope(family, gateway, local)
    body = _ROUTE.pack(family, network.prefixlen, 0, 0, min(table, 255), RTPROT_BOOT, scope, kind, flags)
    body += u32(RTA_TABLE, table)
    if network.prefixlen:
        body += attribute(RTA_DST, network.network_address.packed)
    if link_index:
        body += u32(RTA_OIF, link_index)
    if gateway:
        body += attribute(RTA_GATEWAY, _packed(gateway))
    if source:
        body += attribute(RTA_PREFSRC, _packed(source))
    return body


def _scope(family: int, gateway: str, local: bool) -> int:
    # IPv6 routes have no scope; an IPv4 route is as wide as its next hop is far.
    if family == AF_INET6 or gateway:
        return RT_SCOPE_UNIVERSE
    return RT_SCOPE_HOST if local else RT_SCOPE_LINK


def _rule(rule: Rule) -> bytes:
    head = _ROUTE.pack(rule.family, 0, 0, 0, min(rule.table, 255), 0, 0, FR_ACT_TO_TBL, 0)
    return (
        head
        + u32(FRA_PRIORITY, rule.priority)
        + u32(FRA_FWMARK, rule.mark)
        + u32(FRA_FWMASK, rule.mask)
        + u32(FRA_TABLE, rule.table)
    )


def _unpack(shape: struct.Struct, message: Message) -> tuple[int, ...]:
    if len(message.body) < shape.size:
        raise RemoteProtocolError(f"rtnetlink message {message.kind} of {len(message.body)} bytes")
    return shape.unpack_from(message.body)


def _packed(ip: str) -> bytes:
    return ip_address(ip).packed


def _family(ip: str) -> int:
    return AF_INET if ip_address(ip).version == 4 else AF_INET6


def _text_address(raw: bytes) -> str:
    if len(raw) not in (4, 16):
        raise RemoteProtocolError(f"address of {len(raw)} bytes")
    return ip_address(raw).compressed
