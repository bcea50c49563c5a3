"""rtnetlink messages: what they say, and what the kernel's answers mean."""

from __future__ import annotations

import struct

import pytest

from ambient.errors import RemoteProtocolError
from ambient.wire import netlink, netlink_route
from ambient.wire.netlink import AF_INET, AF_INET6, Message, Request
from ambient.wire.netlink_route import Address, Link, Route, Rule

LINK, ADDRESS, ROUTE = struct.Struct("=BxHiII"), struct.Struct("=BBBBI"), struct.Struct("=BBBBBBBBI")


def answer(request: Request) -> Message:
    """The request as if the kernel had sent it: the same shapes serve both ways."""
    return Message(request.kind, 0, 1, request.body)


def test_a_veth_names_both_ends_and_the_peers_namespace() -> None:
    """The peer is born where it shall live."""
    request = netlink_route.add_veth("p1", "eth0", peer_netns_fd=9, mtu=9000)
    found = netlink.attributes(request.body[LINK.size :])
    info = netlink.attributes(found[netlink_route.IFLA_LINKINFO])
    peer = netlink.attributes(info[netlink_route.IFLA_INFO_DATA])[netlink_route.VETH_INFO_PEER]
    ends = netlink.attributes(peer[LINK.size :])

    assert netlink.text(found[netlink_route.IFLA_IFNAME]) == "p1"
    assert netlink.text(info[netlink_route.IFLA_INFO_KIND]) == "veth"
    assert netlink.text(ends[netlink_route.IFLA_IFNAME]) == "eth0"
    assert netlink.number(ends[netlink_route.IFLA_NET_NS_FD]) == 9
    assert netlink.number(ends[netlink_route.IFLA_MTU]) == 9000
    by_pid = netlink_route.add_veth("p1", "eth0", peer_netns_pid=71)
    assert struct.pack("=I", 71) in by_pid.body


@pytest.mark.parametrize(
    ("up", "flags", "change"), [(True, 1, 1), (False, 0, 1), (None, 0, 0)], ids=["up", "down", "leave"]
)
def test_a_link_goes_up_down_or_stays(up: bool | None, flags: int, change: int) -> None:
    """Only what is named is changed."""
    request = netlink_route.change_link("eth0", up=up, link_local=False)

    assert LINK.unpack_from(request.body)[3:] == (flags, change)
    spec = netlink.attributes(netlink.attributes(request.body[LINK.size :])[netlink_route.IFLA_AF_SPEC])
    assert netlink.attributes(spec[AF_INET6]) == {netlink_route.IFLA_INET6_ADDR_GEN_MODE: b"\1"}
    assert netlink_route.IFLA_AF_SPEC not in netlink.attributes(
        netlink_route.change_link("lo").body[LINK.size :]
    )


def test_a_links_counters_are_read() -> None:
    """Bytes on the wire are told by the link, so they had better be the right ones."""
    counters = struct.pack("=8Q", 1, 2, 3, 4, 5, 6, 7, 8)
    body = LINK.pack(0, 1, 5, 0x1043, 0) + netlink.string(netlink_route.IFLA_IFNAME, "eth0")
    body += netlink.u32(netlink_route.IFLA_MTU, 1500) + netlink.u32(netlink_route.IFLA_LINK, 8)
    body += netlink.nested(netlink_route.IFLA_LINKINFO, netlink.string(netlink_route.IFLA_INFO_KIND, "veth"))

    link = netlink_route.decode_link(
        Message(16, 0, 1, body + netlink.attribute(netlink_route.IFLA_STATS64, counters))
    )

    assert link == Link(
        index=5,
        name="eth0",
        mtu=1500,
        up=True,
        kind="veth",
        peer_index=8,
        received_packets=1,
        sent_packets=2,
        received_bytes=3,
        sent_bytes=4,
        received_dropped=7,
        sent_dropped=8,
    )
    assert netlink_route.decode_link(Message(16, 0, 1, body)).received_bytes == 0


@pytest.mark.parametrize("cidr", ["10.244.1.2/32", "fd00:10:244:1::2/128", "100.64.1.1/30"])
def test_addresses_are_usable_at_once(cidr: str) -> None:
    """Duplicate address detection costs up to two seconds."""
    request = netlink_route.add_address(cidr, 5)

    assert netlink_route.decode_address(answer(request)) == Address(5, cidr)
    flags = netlink.attributes(request.body[ADDRESS.size :])[netlink_route.IFA_FLAGS]
    assert netlink.number(flags) == netlink_route.IFA_F_NODAD
    assert netlink_route.delete_address(cidr, 5).kind == netlink_route.RTM_DELADDR
    assert netlink_route.add_address("10.0.0.1", 5).body == netlink_route.add_address("10.0.0.1/32", 5).body


@pytest.mark.parametrize(
    ("request_", "route", "scope"),
    [
        (netlink_route.add_route("10.244.1.2/32", link_index=3), Route("10.244.1.2/32", "", 3, 254, 1), 253),
        (
            netlink_route.add_route("0.0.0.0/0", gateway="10.0.0.1"),
            Route("default", "10.0.0.1", 0, 254, 1),
            0,
        ),
        (
            netlink_route.add_route("::/0", gateway="fe80::1", link_index=2),
            Route("default", "fe80::1", 2, 254, 1),
            0,
        ),
        (
            netlink_route.add_route("0.0.0.0/0", link_index=1, table=100, local=True),
            Route("default", "", 1, 100, 2),
            254,
        ),
        (
            netlink_route.add_route("10.0.0.0/8", link_index=1, table=1000, source="10.0.0.1"),
            Route("10.0.0.0/8", "", 1, 1000, 1),
            253,
        ),
    ],
    ids=["link", "gateway", "v6-gateway", "local", "large-table"],
)
def test_routes_say_what_they_are(request_: Request, route: Route, scope: int) -> None:
    """Tables above 255 stand in an attribute."""
    assert netlink_route.decode_route(answer(request_)) == route
    assert ROUTE.unpack_from(request_.body)[6] == scope


def test_a_gateway_may_be_trusted_to_be_there() -> None:
    """``onlink``: for gateways that no route leads to."""
    request = netlink_route.add_route("0.0.0.0/0", gateway="169.254.1.1", link_index=2, onlink=True)

    assert ROUTE.unpack_from(request.body)[8] == netlink_route.RTNH_F_ONLINK
    assert netlink_route.delete_route("0.0.0.0/0").kind == netlink_route.RTM_DELROUTE


@pytest.mark.parametrize("table", [100, 1000])
def test_a_routing_rule_comes_back_as_it_went(table: int) -> None:
    """The agent compares what stands with what it meant."""
    rule = Rule(AF_INET, 32764, 0x111, 0xFFF, table)

    assert netlink_route.decode_rule(answer(netlink_route.add_rule(rule))) == rule
    assert netlink_route.delete_rule(rule).body == netlink_route.add_rule(rule).body


def test_a_neighbour_is_permanent() -> None:
    """It is never asked for again."""
    body = netlink_route.add_neighbour("fe80::1", 3, b"\2\0\0\0\0\1").body

    assert struct.unpack_from("=BxxxiHBB", body) == (AF_INET6, 3, netlink_route.NUD_PERMANENT, 0, 0)


@pytest.mark.parametrize(
    "decode",
    [
        netlink_route.decode_link,
        netlink_route.decode_address,
        netlink_route.decode_route,
        netlink_route.decode_rule,
    ],
)
def test_short_answers_are_refused(decode: object) -> None:
    """An index out of nothing would be worse."""
    assert callable(decode)
    with pytest.raises(RemoteProtocolError):
        decode(Message(1, 0, 1, b"\0\0"))


def test_an_address_of_no_family_is_refused() -> None:
    """Neither 4 nor 16 bytes."""
    body = ADDRESS.pack(AF_INET, 32, 0, 0, 1) + netlink.attribute(netlink_route.IFA_LOCAL, b"123")

    with pytest.raises(RemoteProtocolError):
        netlink_route.decode_address(Message(20, 0, 1, body))


def test_every_question_is_a_dump_or_acknowledged() -> None:
    """Else the asker would wait for ever."""
    dumps = [
        netlink_route.dump_links(),
        netlink_route.dump_addresses(),
        netlink_route.dump_routes(AF_INET),
        netlink_route.dump_rules(AF_INET6),
    ]

    assert all(request.flags == netlink.NLM_F_DUMP for request in dumps)
    assert netlink_route.get_link("lo").flags & netlink.NLM_F_ACK
    assert netlink_route.delete_link("lo").flags & netlink.NLM_F_ACK
