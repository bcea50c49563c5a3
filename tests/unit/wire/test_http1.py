"""HTTP/1.1 parsing: stories of whole messages, and every refusal."""

from __future__ import annotations

import pytest

from ambient.wire.http1 import RequestParser, ResponseParser
from ambient.wire.http1_heads import END, Refused, RequestHead, ResponseHead
from ambient.wire.http1_rules import MAX_HEAD_BYTES, MAX_HEADERS, MAX_INFORMATIONAL


def refusal(events: list[object]) -> Refused:
    """The refusal that ends *events*."""
    last = events[-1]
    assert isinstance(last, Refused), events
    return last


def request(data: bytes) -> list[object]:
    return list(RequestParser().receive_data(data))


def response(data: bytes, method: bytes = b"GET") -> list[object]:
    parser = ResponseParser()
    parser.expect(method)
    return list(parser.receive_data(data))


def test_request_with_body_becomes_head_body_end() -> None:
    """The ordinary case, with this hop's own headers forgotten and the rest in lower case."""
    events = request(
        b"POST /a?b=c HTTP/1.1\r\nHost: reviews:9080\r\nContent-Length: 3\r\nX-One: 1 \t\r\n"
        b"Connection: keep-alive\r\nConnection: X-Secret\r\nX-Secret: 2\r\nKeep-Alive: timeout=5\r\n"
        b"TE: trailers\r\n\r\nabc"
    )

    head = RequestHead(b"POST", b"/a?b=c", b"reviews:9080", [(b"x-one", b"1")], content_length=3)
    assert events == [head, b"abc", END]
    assert head.has_body


def test_pipelined_requests_are_kept_apart() -> None:
    """Two requests in one read are two requests, the second with nothing of the first."""
    events = request(b"GET /1 HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\nGET /2 HTTP/1.1\r\nHost: b\r\n\r\n")

    first = RequestHead(b"GET", b"/1", b"a", [(b"x", b"1")])
    assert events == [first, END, RequestHead(b"GET", b"/2", b"b"), END]
    assert not first.has_body


def test_valid_request_before_a_broken_one_is_kept() -> None:
    """What came whole is answered before the connection ends."""
    events = request(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nBROKEN\r\n\r\n")

    assert events[:2] == [RequestHead(b"GET", b"/1", b"a"), END]
    assert refusal(events).status == 400


def test_nothing_follows_a_refusal() -> None:
    """A parser that lost its place must not find a request in the rest."""
    parser = RequestParser()
    refusal(list(parser.receive_data(b"BROKEN\r\n")))

    assert parser.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == []
    assert parser.receive_eof() == []


@pytest.mark.parametrize("later", [False, True], ids=["same-read", "later-read"])
def test_bytes_behind_the_last_request_are_ignored(later: bool) -> None:
    """A client that said ``close`` has said all; what follows is nobody's."""
    parser = RequestParser()
    last, rest = (
        b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n",
    )

    events = parser.receive_data(last + (b"" if later else rest))
    events += parser.receive_data(rest)

    assert events == [RequestHead(b"GET", b"/", b"a", keep_alive=False), END]


def test_chunked_request_loses_its_framing_and_trailers() -> None:
    """Chunk sizes, extensions and trailers end here; only the body goes on."""
    events = request(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\n\r\n"
        b"3;x=y\r\nabc\r\n0\r\nTrailer: 1\r\n\r\n"
    )

    assert events == [RequestHead(b"POST", b"/", b"a", chunked=True), b"abc", END]


def test_http_1_0_without_a_host() -> None:
    """Old clients exist; they close after one answer unless they say otherwise."""
    assert request(b"GET / HTTP/1.0\r\n\r\n") == [RequestHead(b"GET", b"/", minor=0, keep_alive=False), END]
    kept = request(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert kept == [RequestHead(b"GET", b"/", minor=0, keep_alive=True), END]


@pytest.mark.parametrize(
    ("line", "target", "host"),
    [
        (b"GET http://a/x?y", b"/x?y", b"a"),
        (b"GET HTTPS://A", b"/", b"A"),
        (b"GET http://a?q", b"/?q", b"a"),
        (b"OPTIONS *", b"*", b"a"),
    ],
    ids=["absolute", "no-path", "query-only", "asterisk"],
)
def test_targets_are_brought_to_origin_form(line: bytes, target: bytes, host: bytes) -> None:
    """Every form names one place, and the next hop sees one form."""
    head = request(line + b" HTTP/1.1\r\nHost: a\r\n\r\n")[0]

    assert isinstance(head, RequestHead)
    assert (head.target, head.host) == (target, host)


def test_expectation_is_told_to_the_server_only() -> None:
    """The proxy answers 100 itself, so the next hop must not see the header."""
    head = request(b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n")[0]

    assert head == RequestHead(b"PUT", b"/", b"a", content_length=1, expects_continue=True)


def test_upgrade_is_not_followed() -> None:
    """Bytes behind an upgrade nobody agreed to are HTTP (CVE-2022-41721)."""
    upgrade = b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"

    events = request(upgrade + b"GET /2 HTTP/1.1\r\nHost: a\r\n\r\n")

    first = RequestHead(b"GET", b"/1", b"a", upgrade=b"h2c")
    assert events == [first, END, RequestHead(b"GET", b"/2", b"a"), END]
    assert request(upgrade) == [first, END]
    assert request(upgrade * 2) == [first, END] * 2


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nExpect: much\r\nContent-Length: 1\r\n\r\n", 417),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1 1\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 1234567890123456789\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (
            b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
        ),
        (b"PUT / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"x: y\r\n" * MAX_HEADERS + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nx: " + b"y" * MAX_HEAD_BYTES, 431),
        (b"GET /" + b"y" * MAX_HEAD_BYTES, 414),
    ],
)
def test_ambiguous_requests_are_refused(data: bytes, status: int) -> None:
    """Whatever two servers could read in two ways is read by nobody."""
    assert refusal(request(data)).status == status


def test_endless_chunk_extension_is_refused() -> None:
    """A peer may not keep a connection busy for ever without saying anything."""
    parser = RequestParser()
    parser.receive_data(b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;")
    events: list[object] = []
    for _ in range(MAX_HEAD_BYTES // 1024 + 1):
        events += parser.receive_data(b"x" * 1024)

    assert refusal(events).status == 431


def test_one_large_read_of_body_and_extension_is_no_flood() -> None:
    """The bound is on silence: progress within the same read resets it."""
    parser = RequestParser()
    head = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"

    events = parser.receive_data(head + b"1;" + b"x" * (MAX_HEAD_BYTES + 1))

    assert events == [RequestHead(b"PUT", b"/", b"a", chunked=True)]


def test_trailers_are_bounded() -> None:
    """Dropped is not free."""
    head = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"

    assert request(head + b"x: y\r\n" * MAX_HEADERS + b"\r\n")[-1] is END
    assert refusal(request(head + b"x: y\r\n" * (MAX_HEADERS + 1) + b"\r\n")).status == 431


def test_request_cut_short_is_refused() -> None:
    """A connection that ends inside a request did not ask anything."""
    for cut in (b"GET", b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n1"):
        parser = RequestParser()
        parser.receive_data(cut)
        assert parser.begun
        assert refusal(list(parser.receive_eof())).status == 400
    assert RequestParser().receive_eof() == []


def test_callback_bug_is_not_the_peers_fault() -> None:
    """A mistake of ours must surface, not look like a bad request."""

    class Broken(RequestParser):
        def on_url(self, data: bytes) -> None:
            raise ZeroDivisionError

    with pytest.raises(Exception, match="on_url") as caught:
        Broken().receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_responses_one_after_the_other() -> None:
    """One connection, many exchanges, each as its framing says."""
    parser = ResponseParser()
    assert parser.idle
    parser.expect(b"GET")
    assert not parser.idle

    assert parser.receive_data(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nServer: x\r\n\r\nab") == [
        ResponseHead(200, [(b"server", b"x")], content_length=2),
        b"ab",
        END,
    ]
    parser.expect(b"GET")
    assert parser.receive_data(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
    ) == [
        ResponseHead(200, chunked=True),
        b"a",
        END,
    ]
    assert parser.idle
    assert parser.receive_eof() == []


@pytest.mark.parametrize(
    ("method", "data", "keep_alive"),
    [
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", True),
        (b"HEAD", b"HTTP/1.1 200 OK\r\n\r\n", True),
        (b"HEAD", b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n", False),
        (b"HEAD", b"HTTP/1.0 200 OK\r\nContent-Length: 9\r\n\r\n", False),
        (b"HEAD", b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", True),
        (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", True),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", False),
    ],
)
def test_responses_without_a_body(method: bytes, data: bytes, keep_alive: bool) -> None:
    """What HEAD, 204 and 304 announce never comes, and the next response is still found."""
    parser = ResponseParser()
    parser.expect(method)

    events = parser.receive_data(data)

    head = events[0]
    assert isinstance(head, ResponseHead)
    assert events == [head, END]
    assert head.keep_alive is keep_alive
    assert not head.until_close
    if keep_alive:
        parser.expect(b"GET")
        assert parser.receive_data(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")[1:] == [END]


def test_body_until_close() -> None:
    """The oldest framing: the end of the connection is the end of the body, and of nothing else."""
    parser = ResponseParser()
    parser.expect(b"GET")

    events = parser.receive_data(b"HTTP/1.0 200 OK\r\n\r\nabc")

    head = ResponseHead(200, minor=0, keep_alive=False)
    assert events == [head, b"abc"]
    assert head.until_close
    assert parser.receive_eof() == [END]
    assert parser.receive_eof() == []


def test_informational_responses_precede_the_real_one() -> None:
    """100 and 103 are heads of their own; the exchange goes on."""
    events = response(
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    )

    assert [event.status for event in events if isinstance(event, ResponseHead)] == [100, 103, 200]
    assert events[-1] is END


@pytest.mark.parametrize(
    ("method", "data"),
    [
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 OK\r\n"),
        (b"GET", b"HTTP/1.1 600 Odd\r\nContent-Length: 0\r\n\r\n"),
        (b"GET", b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n"),
        (b"GET", b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 0\r\n\r\nGARBAGE"),
        (b"GET", b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_INFORMATIONAL + 1)),
        (b"GET", b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n"),
        (b"GET", b"HTTP/1.1 200 OK\r\nx: " + b"y" * MAX_HEAD_BYTES),
        (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na"),
        (b"GET", b"SSH-2.0-x\r\n"),
    ],
)
def test_broken_responses_are_the_origins_fault(method: bytes, data: bytes) -> None:
    """An origin cannot make us tell the client something that it did not say clearly."""
    assert refusal(response(data, method)).status == 502


def test_unasked_response_is_refused() -> None:
    """Bytes on an idle connection would be taken for the answer to the next request."""
    parser = ResponseParser()

    assert refusal(list(parser.receive_data(b"HTTP/1.1 200 OK\r\n"))).reason == "response without a request"
    assert parser.receive_data(b"x") == []
    assert not parser.idle


def test_response_cut_short_is_refused() -> None:
    """A truncated body must not look like a whole one."""
    parser = ResponseParser()
    parser.expect(b"GET")
    parser.receive_data(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na")

    assert refusal(list(parser.receive_eof())).reason == "end of connection inside a response"
    assert parser.receive_eof() == []
