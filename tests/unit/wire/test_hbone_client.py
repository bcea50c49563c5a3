"""Answers, good and bad."""

from __future__ import annotations

import pytest

from ambient.errors import LocalProtocolError
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from ambient.wire.hbone_client import HboneClient
from ambient.wire.hbone_events import (
    GoawayReceived,
    ResponseReceived,
    SettingsReceived,
    StreamEnded,
    StreamReset,
)
from ambient.wire.hbone_frames import ErrorCode
from ambient.wire.hbone_server import HboneServer
from tests.unit.wire.hbone_scene import (
    AUTHORITY,
    OK,
    PROTOCOL,
    breaks,
    data,
    greeted,
    headers,
    opened,
    receive,
    split,
)


def test_an_answer_may_end_at_once() -> None:
    """The same from the other side."""
    connection = greeted(HboneClient)
    stream = connection.open(AUTHORITY)
    events = receive(connection, headers(1, OK, f.END_HEADERS | f.END_STREAM))
    assert events == [ResponseReceived(stream, 200, ()), StreamEnded(stream)]


@pytest.mark.parametrize(
    ("flags", "after"), [(f.END_HEADERS, f.RST_STREAM), (f.END_HEADERS | f.END_STREAM, f.DATA)]
)
def test_a_refusal_by_the_peer(flags: int, after: int) -> None:
    """Any status but 2xx is the peer's last word; its body is not wanted."""
    connection = greeted(HboneClient)
    stream = connection.open(AUTHORITY)
    connection.take_output()

    events = receive(connection, headers(1, h.encode_response(403, ()), flags))

    assert events == [ResponseReceived(stream, 403, ())]
    assert split(connection.take_output())[0][0] == after
    assert not connection.streams
    assert receive(connection, data(1, b"body")) == []


def test_informational_answers_are_passed_over() -> None:
    """103 before 200 is legal, if nobody's idea of HBONE."""
    connection = greeted(HboneClient)
    stream = connection.open(AUTHORITY)
    early = headers(1, h.encode_response(103, ()))

    assert receive(connection, early, headers(1, OK)) == [ResponseReceived(stream, 200, ())]


@pytest.mark.parametrize(
    "frames",
    [
        [headers(1, b"\x08\x0220")],
        [headers(1, h.encode_response(103, ()), f.END_HEADERS | f.END_STREAM)],
        [headers(1, OK), headers(1, OK)],
        [headers(1, OK), data(1, b"", f.END_STREAM), headers(1, OK)],
        [data(1, b"early")],
    ],
    ids=["bad-status", "informational-end", "trailers", "after-end", "data-first"],
)
def test_what_an_answer_must_not_be(frames: list[bytes]) -> None:
    """Errors of the stream; the connection lives."""
    connection = greeted(HboneClient)
    stream = connection.open(AUTHORITY)

    event = receive(connection, *frames)[-1]

    assert event == StreamReset(stream, ErrorCode.PROTOCOL_ERROR, False, event.reason)
    assert connection.can_open


def test_the_streams_of_a_client_are_limited_by_the_peer() -> None:
    """MAX_CONCURRENT_STREAMS counts the live ones."""
    connection = greeted(HboneClient, (f.MAX_CONCURRENT_STREAMS, 1))
    stream = connection.open(AUTHORITY)
    assert not connection.can_open
    connection.reset(stream)
    assert connection.can_open
    with pytest.raises(LocalProtocolError):
        greeted(HboneServer).open(AUTHORITY)
    with pytest.raises(LocalProtocolError):
        connection.accept(connection.open(AUTHORITY))


def test_a_server_may_not_turn_push_on() -> None:
    """RFC 9113 6.5.2: only a client has a say in it."""
    breaks(greeted(HboneClient), f.settings(((f.ENABLE_PUSH, 1),)), code=PROTOCOL)
    assert receive(greeted(HboneServer), f.settings(((f.ENABLE_PUSH, 1),))) == [SettingsReceived()]


@pytest.mark.parametrize("number", [2, 3])
def test_a_server_may_not_answer_what_nobody_asked(number: int) -> None:
    """Idle streams have no answers, pushed ones do not exist."""
    breaks(greeted(HboneClient), headers(number, OK), code=PROTOCOL)


def test_goaway_from_a_server_returns_what_it_did_not_take() -> None:
    """Streams above the last one are safe to try elsewhere; the others go on."""
    connection, first = opened()
    second = connection.open(AUTHORITY)

    events = receive(connection, f.goaway(1, 0, b"bye"))

    assert events == [
        StreamReset(second, ErrorCode.REFUSED_STREAM, True, "GOAWAY"),
        GoawayReceived(1, 0, b"bye"),
    ]
    assert not connection.can_open
    assert not connection.drained
    with pytest.raises(LocalProtocolError):
        connection.open(AUTHORITY)
    connection.reset(first)
    assert connection.drained
