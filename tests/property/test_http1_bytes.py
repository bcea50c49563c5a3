"""HTTP/1.1 laws: splits do not matter, garbage is refused, and h11 reads what we read."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import h11
from hypothesis import given
from hypothesis import strategies as st

from ambient.wire.http1 import RequestParser, ResponseParser
from ambient.wire.http1_heads import (
    END,
    LAST_CHUNK,
    Header,
    Refused,
    RequestHead,
    ResponseHead,
    encode_chunk,
    encode_request,
    encode_response,
)

tokens = st.from_regex(rb"[a-z][a-z0-9-]{0,8}", fullmatch=True).map(lambda name: b"x-" + name)
values = st.from_regex(rb"[!-~]([ -~]{0,12}[!-~])?", fullmatch=True)
headers: st.SearchStrategy[list[Header]] = st.lists(st.tuples(tokens, values), max_size=4)
bodies = st.lists(st.binary(min_size=1, max_size=40), max_size=3)
methods = st.sampled_from([b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH"])
targets = st.from_regex(rb"/[a-zA-Z0-9/._~%&=-]{0,20}(\?[a-z0-9=&]{0,10})?", fullmatch=True)
hosts = st.from_regex(rb"[a-z][a-z0-9.-]{0,20}(:[1-9][0-9]{0,3})?", fullmatch=True)


@st.composite
def requests(draw: st.DrawFn) -> tuple[RequestHead, bytes, bytes]:
    """(head, body, the bytes of both)."""
    pieces = draw(bodies)
    chunked = draw(st.booleans())
    body = b"".join(pieces)
    head = RequestHead(draw(methods), draw(targets), draw(hosts), draw(headers))
    if chunked:
        head.chunked = True
        wire = b"".join(encode_chunk(piece) for piece in pieces) + LAST_CHUNK
    else:
        head.content_length = len(body)
        wire = body
    return head, body, encode_request(head) + wire


def pieces_of(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    """*data* cut at *cuts*."""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        if end > start:
            yield data[start:end]


def joined(events: list[object]) -> list[object]:
    """*events* with neighbouring body pieces put together."""
    out: list[object] = []
    for event in events:
        if isinstance(event, bytes) and out and isinstance(out[-1], bytes):
            out[-1] += event
        else:
            out.append(event)
    return out


cuts = st.lists(st.integers(0, 10_000), max_size=8)


@given(st.lists(requests(), min_size=1, max_size=3), cuts)
def test_requests_do_not_depend_on_how_bytes_arrive(
    sent: list[tuple[RequestHead, bytes, bytes]], cuts: list[int]
) -> None:
    """TCP keeps order, not message edges; and what was written is what is read."""
    expected: list[object] = []
    for head, body, _wire in sent:
        expected += [head, body, END] if body else [head, END]
    parser = RequestParser()

    events: list[object] = []
    for piece in pieces_of(b"".join(wire for _head, _body, wire in sent), cuts):
        events += parser.receive_data(piece)

    assert joined(events) == expected
    assert parser.receive_eof() == []


@given(st.binary(max_size=300), cuts)
def test_garbage_is_refused_the_same_way_in_any_split(data: bytes, cuts: list[int]) -> None:
    """Whatever the peer sends, the worst outcome is one refusal, and nothing after it."""
    whole, split = RequestParser(), RequestParser()

    expected = joined(list(whole.receive_data(data)))
    got: list[object] = []
    for piece in pieces_of(data, cuts):
        got += split.receive_data(piece)

    # llhttp words a few errors by where the read ended; that it is one, and when, may not differ.
    assert [_shape(event) for event in joined(got)] == [_shape(event) for event in expected]


def _shape(event: object) -> object:
    return event.status if isinstance(event, Refused) else event


@given(requests())
def test_h11_reads_the_same_request(sent: tuple[RequestHead, bytes, bytes]) -> None:
    """A second implementation agrees on every part of what we write."""
    head, body, wire = sent
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(wire)

    request = connection.next_event()
    data = b""
    while isinstance(event := connection.next_event(), h11.Data):
        data += bytes(event.data)

    assert isinstance(request, h11.Request)
    assert isinstance(event, h11.EndOfMessage)
    assert (request.method, request.target, data) == (head.method, head.target, body)
    assert dict(request.headers)[b"host"] == head.host
    assert [item for item in request.headers if item[0].startswith(b"x-")] == head.headers


fragments = st.sampled_from(
    (
        b"GET|POST| |/| HTTP/1.1| HTTP/1.0|\r\n|\n|\r|Host: a|\r\nHost: a\r\n|Content-Length: 1|"
        b"Transfer-Encoding: chunked|a|0|1|:|\t|\x00|\r\n\r\n"
    ).split(b"|")
)


@given(st.lists(fragments, max_size=14).map(b"".join))
def test_what_we_accept_h11_accepts(data: bytes) -> None:
    """h11 is the more lenient of the two: a head that we take and it does not would be our mistake."""
    events = RequestParser().receive_data(data)
    if not events or not isinstance(events[0], RequestHead):
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data.lstrip(b"\r\n"))

    request = connection.next_event()

    assert isinstance(request, h11.Request)
    assert (request.method, request.target) == (events[0].method, events[0].target)


@given(st.integers(200, 599), headers, bodies, st.booleans(), cuts)
def test_responses_do_not_depend_on_how_bytes_arrive(
    status: int, fields: list[Header], pieces: list[bytes], chunked: bool, cuts: list[int]
) -> None:
    """The same law for the other direction."""
    body = b"".join(pieces)
    bodiless = status in (204, 304)
    head = ResponseHead(status, fields, chunked=chunked, bodiless=bodiless)
    if not chunked:
        head.content_length = 0 if bodiless else len(body)
    wire = b"" if bodiless else b"".join(map(encode_chunk, pieces)) + LAST_CHUNK if chunked else body
    parser = ResponseParser()
    parser.expect(b"GET")

    events: list[object] = []
    for piece in pieces_of(encode_response(head) + wire, cuts):
        events += parser.receive_data(piece)

    got = events[0]
    assert isinstance(got, ResponseHead)
    assert (got.status, got.headers, got.bodiless, got.keep_alive) == (status, fields, bodiless, True)
    assert joined(events[1:]) == ([body, END] if body and not bodiless else [END])
    assert parser.idle


@given(st.sampled_from([b"GET", b"HEAD"]), st.binary(max_size=300), cuts)
def test_garbage_from_an_origin_ends_in_one_refusal(method: bytes, data: bytes, cuts: list[int]) -> None:
    """And never in an exception."""
    parser = ResponseParser()
    parser.expect(method)
    events: list[object] = []
    for piece in pieces_of(b"HTTP/1.1 " + data, cuts):
        events += parser.receive_data(piece)
    events += parser.receive_eof()

    refusals = [event for event in events if isinstance(event, Refused)]
    assert len(refusals) <= 1
    assert not refusals or events[-1] is refusals[0]


def test_h11_is_the_lenient_one() -> None:
    """Why a second parser is an oracle here in one direction only (libraries.md 0.8)."""
    lenient = b"GET / HTTP/1.1\nHost: a\n\n"
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(lenient)

    assert isinstance(connection.next_event(), h11.Request)
    assert isinstance(RequestParser().receive_data(lenient)[-1], Refused)
