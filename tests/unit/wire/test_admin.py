"""Admin calls: overlapping, streaming, given up, and refused with an exit code."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.errors import ConfigError, Denied, LocalProtocolError, RemoteProtocolError, Unavailable
from ambient.wire import admin
from ambient.wire.frames import encode


def test_a_stream_and_a_question_overlap() -> None:
    """``get`` must not wait for ``enroll``."""
    client, server = admin.ClientEnd(), admin.ServerEnd()
    first, one = client.call("enroll", {"mode": "ambient"})
    second, two = client.call("get", fds=1)

    assert server.receive_data(one + two) == [
        admin.Call(first, "enroll", {"mode": "ambient"}),
        admin.Call(second, "get", {}, 1),
    ]
    answers = server.event(first, {"pod": "a"}) + server.result(second, [1]) + server.result(first, None)

    assert client.receive_data(answers) == [
        admin.EventSent(first, {"pod": "a"}),
        admin.ResultSent(second, [1]),
        admin.ResultSent(first, None),
    ]


def test_an_error_ends_a_call() -> None:
    """With the exit code for a script and the line for a person."""
    client, server = admin.ClientEnd(), admin.ServerEnd()
    number, data = client.call("apply")
    server.receive_data(data)

    (answer,) = client.receive_data(server.error(number, admin.ExitCode.BAD_INPUT, "x.yaml:1: no"))

    assert answer == admin.ErrorSent(number, 65, "x.yaml:1: no")
    with pytest.raises(LocalProtocolError, match="no open call"):
        server.result(number, None)


def test_a_call_is_given_up() -> None:
    """Its answer may be under way, and is nobody's mistake."""
    client, server = admin.ClientEnd(), admin.ServerEnd()
    number, data = client.call("enroll")
    server.receive_data(data)
    late = server.result(number, "late")
    cancel = client.cancel(number)

    assert client.receive_data(late) == []
    assert server.receive_data(cancel) == []

    number, data = client.call("enroll")
    server.receive_data(data)
    assert server.receive_data(client.cancel(number)) == [admin.Cancelled(number)]
    with pytest.raises(LocalProtocolError):
        server.event(number, {})


@pytest.mark.parametrize(
    "frame",
    [
        {"method": "get"},
        {"id": "1", "method": "get"},
        {"id": True, "method": "get"},
        {"id": 1, "method": "get", "params": []},
        {"id": 1, "method": "get", "fds": -1},
        {"id": 1},
    ],
    ids=["no-id", "text-id", "bool-id", "params", "fds", "no-method"],
)
def test_what_is_no_call(frame: dict[str, Any]) -> None:
    """And ends the connection."""
    server = admin.ServerEnd()

    with pytest.raises(RemoteProtocolError, match="a call needs"):
        server.receive_data(encode(frame))
    with pytest.raises(LocalProtocolError):
        server.receive_data(b"")


def test_calls_are_bounded_and_numbered_once() -> None:
    """A client cannot make us remember without end."""
    server = admin.ServerEnd()
    for number in range(admin.MAX_OPEN_CALLS):
        server.receive_data(encode({"id": number, "method": "get"}))
    with pytest.raises(RemoteProtocolError, match="calls at once"):
        server.receive_data(encode({"id": -1, "method": "get"}))

    server = admin.ServerEnd()
    server.receive_data(encode({"id": 1, "method": "get"}))
    with pytest.raises(RemoteProtocolError, match="open already"):
        server.receive_data(encode({"id": 1, "method": "get"}))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"id": 9, "result": 1}, "not open"),
        ({"id": 1}, "an answer needs"),
        ({"id": 1, "error": {"code": "x", "message": "y"}}, "an answer needs"),
    ],
    ids=["unasked", "empty", "code"],
)
def test_what_is_no_answer(frame: dict[str, Any], reason: str) -> None:
    """The server broke the wire."""
    client = admin.ClientEnd()
    client.call("get")

    with pytest.raises(RemoteProtocolError, match=reason):
        client.receive_data(encode(frame))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("x"), 65),
        (Unavailable("x"), 69),
        (Denied("x"), 1),
        (admin.CallFailed(124, "late"), 124),
        (KeyError("x"), 1),
    ],
    ids=["input", "away", "denied", "told", "bug"],
)
def test_exit_codes(error: Exception, code: int) -> None:
    """interfaces.md has the table."""
    assert admin.error_code(error) == code


def test_a_cut_connection_is_no_goodbye() -> None:
    """Nor is it an answer."""
    client = admin.ClientEnd()
    client.receive_data(b"\x00")

    with pytest.raises(RemoteProtocolError, match="middle of a frame"):
        client.receive_data(b"")
