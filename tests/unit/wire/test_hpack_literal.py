"""Blocks that are read without the decoder say what the decoder would have said."""

from __future__ import annotations

import hpack
import pytest
from hpack.table import HeaderTable
from hypothesis import given
from hypothesis import strategies as st

from ambient.wire import hbone_headers as h
from ambient.wire.hpack_literal import MAX_ALL_FIELDS, MAX_FIELDS, read_literals

NAMES = st.sampled_from(["baggage", "forwarded", "traceparent", "x" * 100, "x" * 140])
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=300)


def reference(block: bytes) -> list[tuple[bytes, bytes]]:
    return [(bytes(name), bytes(value)) for name, value in hpack.Decoder().decode(block, raw=True)]


def test_the_static_table_is_the_decoders() -> None:
    """RFC 7541, appendix A: all 61 entries."""
    table = HeaderTable.STATIC_TABLE

    assert [read_literals(bytes((0x80 | index,))) for index in range(1, 62)] == [[each] for each in table]


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
        pytest.param(b"\x82" * (MAX_ALL_FIELDS + 1), id="many fields of a byte each"),
    ],
)
def test_the_rest_is_the_decoders(block: bytes) -> None:
    """Whatever depends on earlier blocks, or would let a peer make us do much."""
    assert read_literals(block) is None


@st.composite
def request_blocks(draw: st.DrawFn) -> bytes:
    """Blocks that often begin alike: whole requests of ours, sound or not, and cut or garbled ones."""
    fields = draw(
        st.lists(
            st.tuples(
                st.sampled_from(
                    [b":method", b":authority", b"baggage", b"forwarded", b"te", b"Bad", b"upgrade"]
                ),
                st.sampled_from(
                    [b"CONNECT", b"10.0.0.1:80", b"a=b", b" x", b"trailers", b"x\r\n", b"", b"y" * 130]
                ),
            ),
            max_size=3,
        )
    )
    block = h.encode_request("10.0.0.1:80", (("baggage", draw(st.sampled_from(["a=b", "c=d"]))),))
    for name, value in fields:
        block += (
            b"\x00%c%b" % (len(name), name)
            + (b"%c" % len(value) if len(value) < 127 else b"\x7f%c" % (len(value) - 127))
            + value
        )
    end = draw(st.one_of(st.none(), st.integers(0, len(block))))
    return block[:end]


@given(st.lists(request_blocks(), min_size=2, max_size=8))
def test_requests_that_begin_alike_are_read_alike(blocks: list[bytes]) -> None:
    """What was learned from one request changes nothing in what the next one means."""
    reader = h.RequestReader()
    for block in blocks:
        try:
            headers = h.HeaderDecoder().decode(block)
            expected = h.read_request(headers) if h.list_bytes(headers) <= h.MAX_HEADER_LIST_BYTES else None
        except (h.MalformedError, h.CompressionBrokenError):
            expected = None

        assert reader.read(block) in (None, expected)

        if expected is not None:
            reader.learn(block, expected)


def test_the_second_request_to_a_target_is_read_quickly() -> None:
    """For a few targets at a time, and never beyond what a list may be."""
    reader = h.RequestReader()
    encoders = [
        h.RequestEncoder(f"10.0.0.{number}:80", (("baggage", "a=b"),), ("forwarded", "traceparent"))
        for number in range(h.MAX_REMEMBERED_REQUESTS + 1)
    ]
    for encoder in encoders:
        block = encoder.encode("x", "y")
        assert reader.read(block) is None
        reader.learn(block, h.read_request(h.HeaderDecoder().decode(block)))

    found = [reader.read(encoder.encode('for="10.0.0.9:1"', "z")) for encoder in encoders]

    fields = (("baggage", "a=b"), ("forwarded", 'for="10.0.0.9:1"'), ("traceparent", "z"))
    assert found[1:] == [
        h.Request("CONNECT", f"10.0.0.{number}:80", "", fields) for number in range(1, len(encoders))
    ]
    assert found[0] is None


_FORWARDED, _TRACEPARENT = b"\x00\x09forwarded", b"\x00\x0btraceparent"


@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(_FORWARDED + b"\x01x" + _TRACEPARENT + b"\x02yz", id="ordinary"),
        pytest.param(_FORWARDED + b"\x00" + _TRACEPARENT + b"\x00", id="empty"),
        pytest.param(_FORWARDED + b"\x7e" + b"x" * 126 + _TRACEPARENT + b"\x03y z", id="126 bytes"),
        pytest.param(_FORWARDED + b"\x7f\x00" + b"x" * 127 + _TRACEPARENT + b"\x01y", id="127 bytes"),
        pytest.param(_FORWARDED + b"\x02x" + _TRACEPARENT + b"\x01y", id="first too short"),
        pytest.param(_FORWARDED + b"\x00x" + _TRACEPARENT + b"\x01y", id="first too long"),
        pytest.param(_FORWARDED + b"\x01x" + _TRACEPARENT + b"\x02y", id="cut"),
        pytest.param(_FORWARDED + b"\x01x" + _TRACEPARENT + b"\x01yz", id="second too long"),
        pytest.param(_FORWARDED + b"\x81\xf3" + _TRACEPARENT + b"\x01y", id="huffman"),
        pytest.param(_FORWARDED + b"\x02 x" + _TRACEPARENT + b"\x01y", id="space before"),
        pytest.param(_FORWARDED + b"\x01x" + _TRACEPARENT + b"\x02y ", id="space behind"),
        pytest.param(_FORWARDED + b"\x03x\r\n" + _TRACEPARENT + b"\x01y", id="line break"),
        pytest.param(_FORWARDED + b"\x01x" + _TRACEPARENT + b"\x01\n", id="only a line break"),
        pytest.param(_FORWARDED + b"\x01x" + _TRACEPARENT + b"\x02y\n", id="line break at the end"),
        pytest.param(_FORWARDED + b"\x02\xc3\xa9" + _TRACEPARENT + b"\x01y", id="not ASCII"),
        pytest.param(_FORWARDED + b"\x01x", id="one field"),
        pytest.param(_TRACEPARENT + b"\x01y" + _FORWARDED + b"\x01x", id="other order"),
    ],
)
def test_an_ending_means_what_the_decoder_makes_of_it(ending: bytes) -> None:
    """Also where it looks nearly as the one before it did."""
    begin = h.encode_request("10.0.0.1:80", (("baggage", "a=b"),))
    reader = h.RequestReader()
    usual = begin + _FORWARDED + b"\x01x" + _TRACEPARENT + b"\x01y"
    reader.learn(usual, h.read_request(h.HeaderDecoder().decode(usual)))
    assert reader.read(usual) is not None

    try:
        expected = h.read_request(h.HeaderDecoder().decode(begin + ending))
    except (h.MalformedError, h.CompressionBrokenError):
        expected = None

    assert reader.read(begin + ending) in (None, expected)


def test_what_is_too_large_is_not_read_quickly() -> None:
    """A block of few bytes can say much, and 431 is the decoder's to give."""
    reader = h.RequestReader()
    block = h.encode_request("10.0.0.1:80", ())
    reader.learn(
        block + b"\x00\x01a\x01b" * 2,
        h.read_request(h.HeaderDecoder().decode(block + b"\x00\x01a\x01b" * 2)),
    )

    # 0x90 is "accept-encoding: gzip, deflate" of the static table: 60 bytes of a list.
    assert reader.read(block + b"\x90" * 270) is not None
    assert reader.read(block + b"\x90" * 280) is None


def test_no_ending_makes_a_request_too_large() -> None:
    """What begins so that only a short ending fits is not remembered."""
    # 0x90 is "accept-encoding: gzip, deflate" of the static table: 60 bytes of a list.
    ending = _FORWARDED + b"\x7e" + b"x" * 126 + _TRACEPARENT + b"\x01y"
    too_large = []
    for count in range(255, 270):
        reader = h.RequestReader()
        begin = h.encode_request("10.0.0.1:80", ()) + b"\x90" * count
        usual = begin + b"\x90" * h.VARYING_FIELDS
        reader.learn(usual, h.read_request(h.HeaderDecoder().decode(usual)))
        if h.list_bytes(h.HeaderDecoder().decode(begin + ending)) > h.MAX_HEADER_LIST_BYTES:
            too_large.append(count)
            assert reader.read(begin + ending) is None
    assert too_large


def test_the_decoder_stays_in_step() -> None:
    """A block that was read here leaves the table as it was."""
    encoder, decoder = hpack.Encoder(), h.HeaderDecoder()
    first = encoder.encode([("x-a", "1")])
    again = encoder.encode([("x-a", "1")])

    assert decoder.decode(first) == [(b"x-a", b"1")]
    assert decoder.decode(h.encode_response(200, (("a", "b"),))) == [(b":status", b"200"), (b"a", b"b")]
    assert decoder.decode(again) == [(b"x-a", b"1")]
