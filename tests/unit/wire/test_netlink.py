"""Netlink framing: what the kernel sends is read exactly, and a lie about a length is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.errors import RemoteProtocolError
from ambient.wire import netlink
from ambient.wire.netlink import Ack, Message, Request

EEXIST = 17


def error(code: int, tail: bytes = b"", flags: int = 0, echoed: int = 16) -> Message:
    """An NLMSG_ERROR as the kernel builds it: errno, the request's header, and what *tail* says."""
    return Message(netlink.NLMSG_ERROR, flags, 7, struct.pack("=iIHHII", -code, echoed, 1, 0, 7, 0) + tail)


def test_requests_of_one_datagram_are_numbered_and_aligned() -> None:
    """The kernel walks them by their padded lengths."""
    data = netlink.encode_all([Request(16, b"12345", "one"), Request(17, b"", "two", 0)], 41)

    assert list(netlink.decode(data)) == [Message(16, 0x5, 41, b"12345"), Message(17, 0x1, 42, b"")]
    assert len(data) == 24 + 16


@pytest.mark.parametrize(
    "data",
    [b"\0" * 15, struct.pack("=IHHII", 15, 0, 0, 0, 0), struct.pack("=IHHII", 17, 0, 0, 0, 0)],
    ids=["short-header", "shorter-than-itself", "longer-than-the-datagram"],
)
def test_a_lie_about_a_length_is_refused(data: bytes) -> None:
    """Never read past what came."""
    with pytest.raises(RemoteProtocolError):
        list(netlink.decode(data))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (error(0), Ack(7, 0)),
        (error(EEXIST), Ack(7, EEXIST)),
        (Message(netlink.NLMSG_DONE, 0, 7, b""), Ack(7, 0)),
        (Message(netlink.NLMSG_DONE, 0, 7, struct.pack("=i", -EEXIST)), Ack(7, EEXIST)),
        (
            error(EEXIST, netlink.string(1, "because"), netlink.NLM_F_ACK_TLVS | netlink.NLM_F_CAPPED),
            Ack(7, 17, "because"),
        ),
        (
            error(EEXIST, b"body" + netlink.string(1, "so"), netlink.NLM_F_ACK_TLVS, echoed=20),
            Ack(7, 17, "so"),
        ),
        (error(EEXIST, netlink.u32(2, 9), netlink.NLM_F_ACK_TLVS | netlink.NLM_F_CAPPED), Ack(7, EEXIST)),
        (Message(netlink.NLMSG_ERROR, netlink.NLM_F_ACK_TLVS, 7, struct.pack("=i", -1)), Ack(7, 1)),
    ],
    ids=[
        "done",
        "refused",
        "end-of-dump",
        "refused-dump",
        "explained",
        "explained-behind-the-echo",
        "no-text",
        "cut",
    ],
)
def test_acknowledgements_say_whether_and_why(message: Message, expected: Ack) -> None:
    """The kernel's own words go into the operator's error."""
    assert netlink.decode_ack(message) == expected


def test_attributes_are_aligned_flagged_and_repeatable() -> None:
    """Lists repeat one number; the nested flag is no part of it."""
    data = (
        netlink.nested(4, netlink.u8(1, 5), netlink.string(2, "lo"))
        + netlink.be32(1, 258)
        + netlink.u32(1, 3)
    )

    listed = netlink.attribute_list(data)

    assert [kind for kind, _ in listed] == [4, 1, 1]
    assert netlink.attribute_list(listed[0][1]) == [(1, b"\x05"), (2, b"lo\0")]
    assert listed[1][1] == b"\0\0\1\2"
    assert netlink.number(netlink.attributes(data)[1]) == 3
    assert netlink.number(None) == 0
    assert netlink.text(b"lo\0garbage") == "lo"


@pytest.mark.parametrize("length", [3, 9], ids=["too-small", "too-large"])
def test_a_lying_attribute_is_refused(length: int) -> None:
    """As with messages."""
    with pytest.raises(RemoteProtocolError):
        netlink.attribute_list(struct.pack("=HH", length, 1) + b"1234")


@given(st.binary(max_size=64))
def test_garbage_raises_nothing_else(data: bytes) -> None:
    """Whatever comes, there is one kind of error."""
    for read in (lambda: list(netlink.decode(data)), lambda: netlink.attribute_list(data)):
        try:
            read()
        except RemoteProtocolError:
            pass
