"""DNS messages: what a resolver sends and what it must be able to read."""

from __future__ import annotations

import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.errors import RemoteProtocolError
from ambient.wire.dns import (
    MAX_TCP_BYTES,
    MAX_UDP_BYTES,
    TYPE_A,
    TYPE_AAAA,
    Answer,
    Rcode,
    encode_answer,
    encode_query,
    is_answer_to,
    parse_query,
    with_identifier,
)

labels = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=20)
HEADER = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0)


@given(
    st.integers(0, 65535), st.lists(labels, min_size=1, max_size=6), st.sampled_from([TYPE_A, TYPE_AAAA, 33])
)
def test_a_query_reads_back(identifier: int, parts: list[str], kind: int) -> None:
    """What one end asks is what the other end understands."""
    query = parse_query(encode_query(identifier, ".".join(parts), kind))

    assert (query.identifier, query.name, query.kind) == (identifier, ".".join(parts), kind)
    assert query.recursion_desired


def test_names_are_compared_without_case() -> None:
    """RFC 1035 section 2.3.3; resolvers shuffle the case against spoofing and want it back as sent."""
    data = encode_query(1, "DeTails.bookinfo", TYPE_A)
    query = parse_query(data)

    assert query.name == "details.bookinfo"
    assert query.question == data[12:]


def test_an_answer_carries_every_address() -> None:
    """Header, question and one record per address, each pointing back to the name."""
    query = parse_query(encode_query(9, "a.b", TYPE_A))

    reply = encode_answer(
        query, Answer(Rcode.NOERROR, ("10.96.0.7", "10.96.0.8")), ttl=5, max_bytes=MAX_UDP_BYTES
    )

    assert struct.unpack_from("!HHHHHH", reply) == (9, 0x8580, 1, 2, 0, 0)
    records = reply[12 + len(query.question) :]
    assert records[:16] == struct.pack("!HHHIH", 0xC00C, 1, 1, 5, 4) + bytes([10, 96, 0, 7])
    assert len(records) == 32


def test_an_alias_comes_first_and_owns_the_addresses() -> None:
    """CNAME, then A records that point to its target."""
    query = parse_query(encode_query(9, "a.b.search", TYPE_A))

    reply = encode_answer(
        query, Answer(Rcode.NOERROR, ("10.96.0.7",), "a.b"), ttl=30, max_bytes=MAX_UDP_BYTES
    )

    start = 12 + len(query.question)
    target = b"\1a\1b\0"
    assert reply[start : start + 12] == struct.pack("!HHHIH", 0xC00C, 5, 1, 30, len(target))
    assert reply[start + 12 : start + 12 + len(target)] == target
    pointer = struct.unpack_from("!H", reply, start + 12 + len(target))[0]
    assert pointer == 0xC000 | (start + 12)


@pytest.mark.parametrize(
    ("edns", "kept"), [(0, 30), (512, 29), (1232, 74), (4096, 74)], ids=["none", "least", "flag-day", "more"]
)
def test_a_resolver_that_takes_more_gets_more(edns: int, kept: int) -> None:
    """ztunnel's figure: 256 addresses of one name are 74 by UDP."""
    query = parse_query(encode_query(9, "large.test.svc", TYPE_A, edns_bytes=edns))
    addresses = tuple(f"10.0.0.{n}" for n in range(256))

    reply = encode_answer(query, Answer(Rcode.NOERROR, addresses), ttl=30, max_bytes=query.udp_room)

    _, flags, _, count, _, additional = struct.unpack_from("!HHHHHH", reply)
    assert (count, bool(flags & 0x0200), additional) == (kept, True, int(edns > 0))
    assert len(reply) <= query.udp_room
    if edns:
        assert reply[-11:] == struct.pack("!BHHIH", 0, 41, 1232, 0, 0)


def test_only_the_answer_to_what_was_sent_is_believed() -> None:
    """Number, question and direction; a refusal may leave the question out."""
    sent = encode_query(9, "a.b", TYPE_A)
    good = encode_answer(parse_query(sent), Answer(Rcode.NOERROR, ("10.0.0.1",)), ttl=5, max_bytes=512)

    assert is_answer_to(good, sent)
    assert not is_answer_to(with_identifier(good, 10), sent)
    assert not is_answer_to(sent, sent)
    assert not is_answer_to(good[:11], sent)
    assert not is_answer_to(good.replace(b"\1b\0", b"\1c\0"), sent)
    assert is_answer_to(struct.pack("!HHHHHH", 9, 0x8182, 0, 0, 0, 0), sent)
    assert not is_answer_to(struct.pack("!HHHHHH", 9, 0x8180, 0, 1, 0, 0), sent)


@given(st.binary(max_size=80))
def test_no_bytes_of_a_server_can_crash_us(reply: bytes) -> None:
    """Whatever comes from upstream is believed or not, and nothing else."""
    assert is_answer_to(reply, encode_query(9, "a.b", TYPE_A)) in (True, False)


@pytest.mark.parametrize(
    ("max_bytes", "kept", "cut"), [(MAX_UDP_BYTES, 17, True), (MAX_TCP_BYTES, 100, False)], ids=["udp", "tcp"]
)
def test_what_does_not_fit_is_left_out_and_said(max_bytes: int, kept: int, cut: bool) -> None:
    """TC sends the resolver to TCP, where all of it fits."""
    query = parse_query(encode_query(9, "a.b", TYPE_AAAA))
    addresses = tuple(f"fd00::{n:x}" for n in range(1, 101))

    reply = encode_answer(query, Answer(Rcode.NOERROR, addresses), ttl=5, max_bytes=max_bytes)

    _, flags, _, count, _, _ = struct.unpack_from("!HHHHHH", reply)
    assert (count, bool(flags & 0x0200)) == (kept, cut)
    assert len(reply) <= max_bytes


@pytest.mark.parametrize(
    "data",
    [
        b"",
        struct.pack("!HHHHHH", 7, 0x8180, 1, 1, 0, 0) + b"\0\0\1\0\1",
        struct.pack("!HHHHHH", 7, 0x0100, 2, 0, 0, 0) + b"\0\0\1\0\1",
        HEADER,
        HEADER + b"\3ab",
        HEADER + b"\xc0\x0c\0\1\0\1",
        HEADER + (b"\x3f" + b"a" * 63) * 5 + b"\0\0\1\0\1",
        HEADER + b"\1a\0\0",
    ],
    ids=[
        "empty",
        "response",
        "two-questions",
        "no-name",
        "cut-label",
        "compressed",
        "long-name",
        "cut-question",
    ],
)
def test_broken_queries_are_refused(data: bytes) -> None:
    """Nothing that is not plainly one question gets an answer."""
    with pytest.raises(RemoteProtocolError):
        parse_query(data)


@given(st.binary(max_size=80))
def test_garbage_raises_only_remote_protocol_error(data: bytes) -> None:
    """Whatever arrives, the worst outcome is silence."""
    with suppress(RemoteProtocolError):
        parse_query(data)
