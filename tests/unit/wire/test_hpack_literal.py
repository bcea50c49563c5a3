"""Blocks that are read without the decoder say what the decoder would have said."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.wire import hbone_headers as h
from ambient.wire.hpack_literal import MAX_FIELDS, read_literals

NAMES = st.sampled_from(["baggage", "forwarded", "traceparent", "x" * 100, "x" * 140])
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=300)


def reference(block: bytes) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in hpack.Decoder().decode(block, raw=True)]


@given(st.lists(st.tuples(NAMES, VALUES), max_size=8).map(tuple))
def test_our_own_requests_need_no_decoder(headers: h.Headers) -> None:
    """As long as every string is one of a usual length."""
    block = h.encode_request("10.0.0.1:80", headers)

    found = read_literals(block)

    if all(len(value) < 255 for _, value in headers):
        assert found is not None
    assert found in (None, reference(block))


@given(st.binary(max_size=200))
def test_whatever_it_reads_the_decoder_reads_alike(block: bytes) -> None:
    """It may give up where it likes, but it may not read anything into a block."""
    found = read_literals(block)

    if found is not None:
        assert found == reference(block)


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(b"\x40\x01a\x01b", id="changes the table"),
        pytest.param(b"\x20", id="changes the table's size"),
        pytest.param(b"\xbe", id="points into the table"),
        pytest.param(b"\x80", id="index 0"),
        pytest.param(b"\x00\x81\x1f\x01b", id="Huffman"),
        pytest.param(b"\x00\x05ab", id="cut"),
        pytest.param(b"\x0f\x00\x01b", id="a long index"),
        pytest.param(b"\x00\x01a\x01b" * (MAX_FIELDS + 1), id="many fields"),
    ],
)
def test_the_rest_is_the_decoders(block: bytes) -> None:
    """Whatever depends on earlier blocks, or would let a peer make us do much."""
    assert read_literals(block) is None


def test_the_decoder_stays_in_step() -> None:
    """A block that was read here leaves the table as it was."""
    encoder, decoder = hpack.Encoder(), h.HeaderDecoder()
    first = encoder.encode([("x-a", "1")])
    again = encoder.encode([("x-a", "1")])

    assert decoder.decode(first) == [(b"x-a", b"1")]
    assert decoder.decode(h.encode_response(200, (("a", "b"),))) == [(b":status", b"200"), (b"a", b"b")]
    assert decoder.decode(again) == [(b"x-a", b"1")]
