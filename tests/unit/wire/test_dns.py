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
    parse_query,
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
