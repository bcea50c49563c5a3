"""What a CONNECT may say, and what is malformed."""

from __future__ import annotations

import hpack
import pytest

from ambient.errors import LocalProtocolError
from ambient.wire import hbone_headers as h

CONNECT = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.1:80")]
GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"x")]


def test_a_connect_and_its_headers() -> None:
    """The fields that carry a tunnel, in the order they came."""
    request = h.read_request([*CONNECT, (b"baggage", b"a=b"), (b"te", b"trailers")])

    assert request == h.Request("CONNECT", "10.0.0.1:80", "", (("baggage", "a=b"), ("te", "trailers")))


def test_other_methods_are_well_formed_too() -> None:
    """405 is an answer to a request; a malformed one gets a reset."""
    assert h.read_request(GET).method == "GET"
    extended = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]]
    assert h.read_request(extended).protocol == "websocket"


def test_an_encoder_says_what_encode_request_says() -> None:
    """Only sooner; and it refuses what cannot be sent."""
    encoder = h.RequestEncoder("10.0.0.1:80", (("baggage", "a=b"),), ("x-a", "x-b"))

    for values in (("1", "2"), ("", "x" * 126), ("x" * 127, "x" * 300), ("\xe9", "a b")):
        headers = (("baggage", "a=b"), ("x-a", values[0]), ("x-b", values[1]))
        assert encoder.encode(*values) == h.encode_request("10.0.0.1:80", headers)

    for bad in ("a\nb", " a", "a ", "x" * h.MAX_SENT_BLOCK_BYTES):
        with pytest.raises(LocalProtocolError):
            encoder.encode("fine", bad)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b":authority", b"x")],
        [(b":method", b"")],
        [(b":method", b"CONNECT")],
        [(b":method", b"CONNECT"), (b":authority", b"")],
        [*CONNECT, (b":scheme", b"https")],
        [*CONNECT, (b":path", b"/")],
        [*CONNECT, (b":authority", b"y:1")],
        [*CONNECT, (b":unknown", b"1")],
        [(b"a", b"1"), *CONNECT],
        [*CONNECT, (b"Upper", b"1")],
        [*CONNECT, (b"", b"1")],
        [*CONNECT, (b"a b", b"1")],
        [*CONNECT, (b"a", b"1\n2")],
        [*CONNECT, (b"a", b"1\x002")],
        [*CONNECT, (b"a", b" 1")],
        [*CONNECT, (b"a", b"1\t")],
        [*CONNECT, (b"connection", b"close")],
        [*CONNECT, (b"transfer-encoding", b"chunked")],
        [*CONNECT, (b"te", b"gzip")],
        [(b":method", b"GET"), (b":scheme", b"https")],
        [(b":method", b"GET"), (b":scheme", b""), (b":path", b"/")],
        [(b":status", b"200")],
    ],
)
def test_malformed_requests(headers: h.RawHeaders) -> None:
    """RFC 9113 8.1.1: each is an error of its stream."""
    with pytest.raises(h.MalformedError):
        h.read_request(headers)


def test_an_answer() -> None:
    """Status and fields."""
    assert h.read_response([(b":status", b"200"), (b"baggage", b"a=b")]) == (200, (("baggage", "a=b"),))


@pytest.mark.parametrize("status", [b"", b"20", b"0200", b"099", b"2x0", b"101", "２００".encode()])
def test_what_is_no_status(status: bytes) -> None:
    """101 has no meaning in HTTP/2 (RFC 9113 8.6), and int() would take too much."""
    with pytest.raises(h.MalformedError):
        h.read_response([(b":status", status)])


@pytest.mark.parametrize("size", [0, 126, 127, 128, 254, 255, 300, 15_000])
def test_what_we_encode_decodes_to_the_same(size: int) -> None:
    """The length's encoding changes at 127 and at 255."""
    value = "v" * size
    decoded = hpack.Decoder().decode(h.encode_request("10.0.0.1:80", (("x-a", value),)), raw=True)

    assert [(bytes(a), bytes(b)) for a, b in decoded] == [*CONNECT, (b"x-a", value.encode())]


@pytest.mark.parametrize("status", [200, 403, 503])
def test_an_encoded_answer(status: int) -> None:
    """200 has an entry of the static table, the others have not."""
    decoded = hpack.Decoder().decode(h.encode_response(status, (("a", "b"),)))

    assert decoded == [(":status", str(status)), ("a", "b")]


@pytest.mark.parametrize(
    ("authority", "headers"),
    [
        ("", ()),
        ("a\nb", ()),
        ("a:1", (("Upper", "x"),)),
        ("a:1", ((":method", "x"),)),
        ("a:1", (("x", "line\r\nfeed"),)),
        ("a:1", (("x", "v" * h.MAX_SENT_BLOCK_BYTES),)),
    ],
    ids=["empty", "newline", "upper", "pseudo", "smuggled", "large"],
)
def test_what_we_never_send(authority: str, headers: h.Headers) -> None:
    """A label of a pod ends up in baggage: it must not become a header of its own."""
    with pytest.raises(LocalProtocolError):
        h.encode_request(authority, headers)


def test_a_broken_block_is_no_business_of_one_stream() -> None:
    """The decoder's table is out of step: the connection must end."""
    with pytest.raises(h.CompressionBrokenError) as caught:
        h.HeaderDecoder().decode(b"\x80")
    assert not caught.value.oversized


def test_a_bomb_is_stopped_by_its_decoded_size() -> None:
    """CVE-2026-47774: a few encoded bytes that decode to megabytes."""
    bomb = b"\x40\x01a" + b"\x7f\x81\x1e" + b"v" * 3968 + b"\xbe" * 100
    with pytest.raises(h.CompressionBrokenError) as caught:
        h.HeaderDecoder().decode(bomb)
    assert caught.value.oversized


def test_the_size_of_a_list_counts_every_crumb() -> None:
    """Many tiny fields cost more memory than their bytes."""
    assert h.list_bytes([(b"a", b"b")] * 10) == 10 * 34
