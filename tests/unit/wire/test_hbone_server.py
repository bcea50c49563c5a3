"""Requests, and what becomes of those that no HBONE peer sends."""

from __future__ import annotations

import pytest

from ambient.errors import LocalProtocolError
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from ambient.wire.hbone_client import HboneClient
from ambient.wire.hbone_events import (
    RequestReceived,
    RequestRejected,
    StreamEnded,
)
from ambient.wire.hbone_frames import ErrorCode, frame
from ambient.wire.hbone_server import HboneServer
from tests.unit.wire.hbone_scene import (
    AUTHORITY,
    CLOSED,
    GET,
    PROTOCOL,
    accepted,
    breaks,
    data,
    greeted,
    headers,
    hpack_decode,
    receive,
    requested,
    split,
)


def test_a_request_may_end_at_once() -> None:
    """END_STREAM on the HEADERS: the source has nothing to send, only to read."""
    connection = greeted(HboneServer)
    request, ended = receive(connection, headers(1, flags=f.END_HEADERS | f.END_STREAM))
    assert ended == StreamEnded(request.stream)
    connection.accept(request.stream)
    assert connection.streams


def test_a_refusal_has_a_body_and_ends_the_stream() -> None:
    """The reason reaches whoever debugs with curl; NO_ERROR stops the rest of the request."""
    connection, stream = requested()
    connection.refuse(stream, 403, "denied by shop/api")

    answer, body, reset = split(connection.take_output())
    assert hpack_decode(answer[3])[0] == (":status", "403")
    assert body == (f.DATA, f.END_STREAM, 1, b"denied by shop/api\n")
    assert reset == (f.RST_STREAM, 0, 1, bytes(4))
    assert not connection.streams
    with pytest.raises(LocalProtocolError):
        connection.accept(stream)
    with pytest.raises(LocalProtocolError):
        connection.refuse(stream, 500)


def test_a_refusal_without_a_text() -> None:
    """No body: the HEADERS end the stream."""
    connection = greeted(HboneServer)
    request, _ = receive(connection, headers(1, flags=f.END_HEADERS | f.END_STREAM))
    connection.refuse(request.stream, 503)

    assert [(kind, flags) for kind, flags, _, _ in split(connection.take_output())] == [
        (f.HEADERS, f.END_HEADERS | f.END_STREAM)
    ]


@pytest.mark.parametrize(
    ("block", "status"),
    [
        (GET, 405),
        (h.encode_request(AUTHORITY, (("a", "b" * 14_000), ("c", "d" * 1900), ("e", "f" * 10))), 431),
        (b"\x02\x07CONNECT\x87\x84\x01\x01x\x00\x09:protocol\x02ws", 501),
    ],
    ids=["not-connect", "large", "extended"],
)
def test_requests_that_no_hbone_peer_sends(block: bytes, status: int) -> None:
    """A browser or a scanner gets a proper answer, and the connection lives."""
    connection = greeted(HboneServer)
    if status == 431:
        block = h.encode_request(AUTHORITY, tuple((f"x-{n}", "") for n in range(500)))

    (event,) = receive(connection, headers(1, block, f.END_HEADERS | f.END_STREAM))

    assert isinstance(event, RequestRejected)
    assert event.status == status
    answer, body = split(connection.take_output())
    assert hpack_decode(answer[3])[0] == (":status", str(status))
    assert body[1] == f.END_STREAM
    assert body[3]
    assert isinstance(receive(connection, headers(3))[0], RequestReceived)


def test_the_body_of_a_refusal_waits_for_the_window() -> None:
    """h2spec opens with a window of 0, 1 or 3 bytes and counts."""
    connection = greeted(HboneServer, (f.INITIAL_WINDOW_SIZE, 0))
    receive(connection, headers(1, GET, f.END_HEADERS | f.END_STREAM))
    assert len(split(connection.take_output())) == 1

    receive(connection, f.window_update(1, 3))
    assert split(connection.take_output()) == [(f.DATA, 0, 1, b"onl")]
    receive(connection, f.window_update(0, 3))
    assert connection.take_output() == b""
    receive(connection, f.settings(((f.INITIAL_WINDOW_SIZE, 2),)))
    assert split(connection.take_output())[-1] == (f.DATA, 0, 1, b"y ")
    receive(connection, f.window_update(1, 1000))
    assert split(connection.take_output())[-1][1] == f.END_STREAM
    assert not connection.streams


def test_a_malformed_request_costs_its_stream_only() -> None:
    """RFC 9113 8.1.1: the neighbours on the pooled connection live."""
    connection, _ = accepted()

    (event,) = receive(connection, headers(3, b"\x02\x07CONNECT"))

    assert event == RequestRejected(None, 0, "malformed request: CONNECT without :authority")
    assert split(connection.take_output()) == [(f.RST_STREAM, 0, 3, f.UINT32.pack(1))]
    assert list(connection.streams) == [1]


@pytest.mark.parametrize("fields", [0, 3], ids=["judged", "as before"])
def test_the_reserved_bit_of_a_stream_id_means_nothing(fields: int) -> None:
    """RFC 9113 4.1: it is ignored, also on a request that begins as an earlier one did."""
    connection = greeted(HboneServer)
    block = h.encode_request(AUTHORITY, tuple((f"x-{number}", "y") for number in range(fields)))
    receive(connection, headers(1, block))

    (event,) = receive(connection, headers(1 << 31 | 3, block))

    assert isinstance(event, RequestReceived)
    assert event.stream.stream_id == 3


def test_one_stream_too_many_is_refused() -> None:
    """REFUSED_STREAM: the client may try again elsewhere."""
    connection = greeted(HboneServer, max_streams=1)
    events = receive(connection, headers(1), headers(3))

    assert [type(event) for event in events] == [RequestReceived, RequestRejected]
    assert split(connection.take_output()) == [(f.RST_STREAM, 0, 3, f.UINT32.pack(7))]


def test_the_preface_must_be_the_preface() -> None:
    """H1 and H2 of the threats: HTTP/1 on this port, or no SETTINGS."""
    breaks(HboneServer(), b"GET / HTTP/1.1\r\n", code=PROTOCOL)
    breaks(HboneServer(), f.PREFACE, headers(1), code=PROTOCOL)
    client = HboneClient()
    client.take_output()
    breaks(client, frame(f.SETTINGS, f.ACK, 0), code=PROTOCOL)


def test_headers_on_a_closed_stream() -> None:
    """After both ends of file a stream number is used up."""
    connection, stream = accepted()
    receive(connection, data(1, b"", f.END_STREAM))
    connection.end(stream)
    breaks(connection, headers(1), code=CLOSED)


@pytest.mark.parametrize(("ended", "code"), [(False, PROTOCOL), (True, CLOSED)])
def test_headers_on_an_open_connect(ended: bool, code: ErrorCode) -> None:
    """RFC 9113 8.5 allows DATA and nothing else: an error of the stream."""
    connection, stream = accepted()
    frames = [data(1, b"", f.END_STREAM)] if ended else []

    event = receive(connection, *frames, headers(1))[-1]

    assert (event.stream, event.code) == (stream, code)
    assert receive(connection, headers(1), headers(3))[0].stream.stream_id == 3
