"""Heads back to bytes."""

from __future__ import annotations

import pytest

from ambient.wire.http1_heads import (
    END,
    RequestHead,
    ResponseHead,
    chunks_response,
    encode_chunk,
    encode_request,
    encode_response,
    header,
)


@pytest.mark.parametrize(
    ("head", "framing"),
    [
        (RequestHead(b"GET", b"/", b"a", [(b"x", b"1")]), b""),
        (RequestHead(b"PUT", b"/", b"a", [(b"x", b"1")], content_length=0), b"content-length: 0\r\n"),
        (RequestHead(b"PUT", b"/", b"a", [(b"x", b"1")], chunked=True), b"transfer-encoding: chunked\r\n"),
    ],
    ids=["bare", "length", "chunked"],
)
def test_request_is_written_anew(head: RequestHead, framing: bytes) -> None:
    """The next hop sees one spelling, whatever the client's was."""
    line = head.method + b" / HTTP/1.1\r\nhost: a\r\nx: 1\r\n"
    assert encode_request(head, b"via: b\r\n") == line + framing + b"via: b\r\n\r\n"


@pytest.mark.parametrize(
    ("head", "minor", "close", "fields", "chunks"),
    [
        (ResponseHead(200, content_length=2), 1, False, b"content-length: 2\r\n", False),
        (ResponseHead(200, content_length=2), 1, True, b"content-length: 2\r\nconnection: close\r\n", False),
        (
            ResponseHead(200, content_length=2),
            0,
            False,
            b"content-length: 2\r\nconnection: keep-alive\r\n",
            False,
        ),
        (ResponseHead(200, chunked=True), 1, False, b"transfer-encoding: chunked\r\n", True),
        (ResponseHead(200), 1, False, b"transfer-encoding: chunked\r\n", True),
        (ResponseHead(200), 0, False, b"connection: close\r\n", False),
        (ResponseHead(204, content_length=0, bodiless=True), 1, False, b"", False),
        (ResponseHead(304, content_length=9, bodiless=True), 1, False, b"content-length: 9\r\n", False),
        (ResponseHead(200, chunked=True, bodiless=True), 1, False, b"", False),
        (ResponseHead(103, bodiless=True), 1, True, b"", False),
    ],
)
def test_response_is_framed_for_its_client(
    head: ResponseHead, minor: int, close: bool, fields: bytes, chunks: bool
) -> None:
    """The framing is this hop's: it depends on the client, not on how the origin sent it."""
    written = encode_response(head, minor, close)

    assert written.split(b"\r\n", 1)[1] == fields + b"\r\n"
    assert chunks_response(head, minor) is chunks


def test_unknown_status_has_no_reason() -> None:
    """The origin's own words are not repeated; a status we have no words for stands alone."""
    assert encode_response(ResponseHead(299, content_length=0)).startswith(b"HTTP/1.1 299 \r\n")


def test_empty_chunk_would_end_the_body() -> None:
    """So it is not written."""
    assert encode_chunk(b"") == b""
    assert encode_chunk(b"abc") == b"3\r\nabc\r\n"


def test_header_of_ours_cannot_hold_two() -> None:
    """Text from a certificate or a name ends up here; a line break in it would be an injection."""
    assert header("X-A", " b ") == (b"x-a", b"b")
    with pytest.raises(ValueError, match="control character"):
        header("x-a", "b\r\nx-c: d")


def test_end_prints_as_itself() -> None:
    """For failed assertions."""
    assert repr(END) == "END"
