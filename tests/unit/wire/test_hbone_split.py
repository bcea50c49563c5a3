"""However the bytes of a connection are cut, they mean the same."""

from __future__ import annotations

import pytest

from ambient.wire import hbone_frames as f
from ambient.wire.hbone_events import (
    DataReceived,
    RequestReceived,
    SettingsReceived,
    StreamEnded,
)
from ambient.wire.hbone_frames import ErrorCode, frame
from ambient.wire.hbone_server import HboneServer
from ambient.wire.hbone_split import MAX_MESSAGE_BYTES
from ambient.wire.hbone_streams import (
    CONNECTION_WINDOW_BYTES,
    FIRST_WINDOW_BYTES,
)
from tests.unit.wire.hbone_scene import (
    BLOCK,
    accepted,
    breaks,
    data,
    headers,
    receive,
    split,
)


@pytest.mark.parametrize("step", [1, 2, 8, 9, 10, 13, 1000])
def test_however_the_bytes_are_cut(step: int) -> None:
    """TCP keeps order, not edges: headers, padding and payloads may come byte by byte."""
    stream_bytes = (
        f.PREFACE
        + f.settings(((f.MAX_FRAME_SIZE, 20_000),))
        + headers(1, b"\x03" + BLOCK + bytes(3), f.END_HEADERS | f.PADDED)
        + frame(f.SETTINGS, f.ACK, 0)
        + data(1, b"\x04" + b"hello" + bytes(4), f.PADDED)
        + frame(200, 0, 0, b"unknown")
        + data(1, b"\x02\0\0", f.PADDED | f.END_STREAM)
    )
    connection = HboneServer()
    payload, kinds = b"", []
    for start in range(0, len(stream_bytes), step):
        for event in receive(connection, stream_bytes[start : start + step]):
            if isinstance(event, DataReceived):
                payload += b"".join(event.parts)
            else:
                kinds.append(type(event))

    assert payload == b"hello"
    assert kinds == [SettingsReceived, RequestReceived, StreamEnded]
    assert connection.peer_max_frame == 20_000


def test_slices_of_one_stream_are_gathered() -> None:
    """One sendmsg instead of many: what is adjacent comes as one event."""
    connection, stream = accepted()
    receive(connection, headers(3))

    events = receive(connection, data(1, b"a"), data(1, b"b"), data(3, b"c"), data(1, b"d"))

    assert [(e.stream.stream_id, b"".join(e.parts)) for e in events] == [(1, b"ab"), (3, b"c"), (1, b"d")]
    assert stream.receive_window == FIRST_WINDOW_BYTES - 3


def test_a_message_by_itself_is_charged_like_any_other() -> None:
    """The short way and the long one must leave the same windows, or the two peers' counts drift apart."""
    (short, stream), (long, other) = accepted(), accepted()
    message = memoryview(data(1, b"ping"))

    assert short.take_message(message, 0) is stream
    receive(long, message.tobytes())

    assert short.message_end == len(message)
    assert stream.receive_window == other.receive_window == FIRST_WINDOW_BYTES - 4
    assert short._receive_window == long._receive_window == CONNECTION_WINDOW_BYTES - 4
    assert not short.has_output


@pytest.mark.parametrize(
    "came",
    [
        b"",
        data(1, b"ping")[:8],
        data(1, b"ping")[:-1],
        data(1, b""),
        data(1, b"ping", f.END_STREAM),
        data(1, b"\x00ping", f.PADDED),
        data(3, b"ping"),
        data(1, b"x" * (MAX_MESSAGE_BYTES + 1)),
        data(1, b"x" * (FIRST_WINDOW_BYTES + 1)),
        frame(f.PING, 0, 0, b"12345678"),
    ],
)
def test_what_is_no_message_by_itself(came: bytes) -> None:
    """Everything but the usual is judged by the long way, and asking changes nothing."""
    connection, stream = accepted()

    assert connection.take_message(memoryview(came), 0) is None
    assert stream.receive_window == FIRST_WINDOW_BYTES
    assert connection._receive_window == CONNECTION_WINDOW_BYTES
    assert not connection.has_output


def test_messages_are_taken_one_by_one() -> None:
    """What one batch of the peer wrote comes in one record; what follows them is for the long way."""
    connection, stream = accepted()
    came = memoryview(data(1, b"a") + data(1, b"bc") + frame(f.PING, 0, 0, b"12345678"))

    taken, position = [], 0
    while connection.take_message(came, position) is stream:
        taken.append(came[position + f.FRAME_HEADER_BYTES : connection.message_end].tobytes())
        position = connection.message_end
    connection.receive_data(came[position:], 0.0)

    assert taken == [b"a", b"bc"]
    assert split(connection.take_output()) == [(f.PING, f.ACK, 0, b"12345678")]


def test_no_message_in_the_middle_of_something() -> None:
    """Payload that looks like a frame is payload."""
    connection, _ = accepted()
    inner = memoryview(data(1, b"ping"))
    receive(connection, data(1, bytes(100))[:-50])
    assert connection.take_message(inner, 0) is None
    receive(connection, bytes(50))
    receive(connection, data(1, b"ping")[:5])
    assert connection.take_message(inner, 0) is None

    breaks(*(broken := accepted())[:1], data(0, b"x"), code=ErrorCode.PROTOCOL_ERROR)
    assert broken[0].take_message(inner, 0) is None
