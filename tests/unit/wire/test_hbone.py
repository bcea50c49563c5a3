"""HBONE frame by frame: the conversation, and every way to break it."""

from __future__ import annotations

import pytest

from ambient.wire import hbone_budget as budget
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from ambient.wire.hbone import GOODBYE_PING
from ambient.wire.hbone_client import HboneClient
from ambient.wire.hbone_events import (
    GoawayReceived,
    PingAcknowledged,
    RequestReceived,
    ResponseReceived,
    SettingsReceived,
    StreamEnded,
    StreamReset,
    WindowOpened,
)
from ambient.wire.hbone_frames import ErrorCode, frame
from ambient.wire.hbone_server import HboneServer
from ambient.wire.hbone_split import MAX_FRAME_BYTES, MAX_GATHERED_BYTES, HboneError
from ambient.wire.hbone_streams import (
    CONNECTION_WINDOW_BYTES,
    FIRST_WINDOW_BYTES,
)
from tests.unit.wire.hbone_scene import (
    AUTHORITY,
    BLOCK,
    CALM,
    COMPRESSION,
    FLOW,
    PROTOCOL,
    SIZE,
    accepted,
    breaks,
    data,
    greeted,
    headers,
    opened,
    receive,
    split,
)


def test_greetings() -> None:
    """Who says what first; Istio's figures for windows and frames."""
    client, server = HboneClient(), HboneServer()
    hello, answer = client.take_output(), server.take_output()

    assert hello.startswith(f.PREFACE)
    values = dict(f.SETTING.iter_unpack(split(hello[len(f.PREFACE) :])[0][3]))
    assert values == {
        f.ENABLE_PUSH: 0,
        f.INITIAL_WINDOW_SIZE: FIRST_WINDOW_BYTES,
        f.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
        f.MAX_HEADER_LIST_SIZE: h.MAX_HEADER_LIST_BYTES,
    }
    assert dict(f.SETTING.iter_unpack(split(answer)[0][3]))[f.MAX_CONCURRENT_STREAMS] == 200
    assert receive(server, hello) == [SettingsReceived(), WindowOpened(None)]
    assert receive(client, answer) == [SettingsReceived(), WindowOpened(None)]
    assert client.peer_max_streams == 200
    assert client.send_window == server.send_window == CONNECTION_WINDOW_BYTES
    assert client.peer_max_frame == MAX_FRAME_BYTES
    assert receive(server, client.take_output()) == []
    assert receive(client, server.take_output()) == []


def test_a_tunnel_from_end_to_end() -> None:
    """CONNECT, 200, bytes both ways, one end of file each."""
    client, server = HboneClient(), HboneServer()
    stream = client.open(AUTHORITY, (("baggage", "a=b"),))
    request = receive(server, client.take_output())[-1]
    assert request == RequestReceived(request.stream, AUTHORITY, (("baggage", "a=b"),))
    server.accept(request.stream, (("x", "y"),))
    assert receive(client, server.take_output())[-1] == ResponseReceived(stream, 200, (("x", "y"),))

    up = bytearray(9) + b"hello"
    f.pack_data_header(up, 0, 5 << 8, stream.stream_id)
    client.sent(stream, 5)
    assert client.sendable(stream) == FIRST_WINDOW_BYTES - 5
    (got,) = receive(server, bytes(up))
    assert (got.stream, b"".join(got.parts), got.total) == (request.stream, b"hello", 5)
    client.end(stream)
    client.end(stream)
    assert receive(server, client.take_output()) == [StreamEnded(request.stream)]
    server.end(request.stream)
    assert receive(client, server.take_output()) == [StreamEnded(stream)]
    assert not client.streams
    assert not server.streams
    assert repr(stream) == "<Stream 1>"


def test_the_peer_may_end_last() -> None:
    """The other order of the two ends."""
    connection, stream = accepted()
    connection.end(stream)
    assert receive(connection, data(1, b"", f.END_STREAM)) == [StreamEnded(stream)]
    assert not connection.streams


@pytest.mark.parametrize("code", [ErrorCode.REFUSED_STREAM, ErrorCode.CANCEL])
def test_a_reset_by_the_peer(code: ErrorCode) -> None:
    """REFUSED_STREAM promises that nothing was done."""
    connection, stream = opened()
    refused = code is ErrorCode.REFUSED_STREAM

    assert receive(connection, f.rst_stream(1, code)) == [
        StreamReset(stream, code, refused, "reset by the peer")
    ]


def test_a_clients_goaway_is_only_news() -> None:
    """It opens no more; what it opened goes on."""
    connection, _ = accepted()

    assert receive(connection, f.goaway(0, 0)) == [GoawayReceived(0, 0, b"")]
    assert connection.streams


def test_our_goaway_takes_what_was_under_way() -> None:
    """Draining loses no request: the excluding GOAWAY comes when the peer has read the first."""
    connection, stream = accepted()
    connection.goaway()
    connection.goaway()
    first, ping = split(connection.take_output())
    assert first[3][:4] == f.UINT32.pack(f.MAX_STREAM_ID)
    assert ping[3] == GOODBYE_PING

    assert isinstance(receive(connection, headers(3))[0], RequestReceived)
    assert receive(connection, frame(f.PING, f.ACK, 0, GOODBYE_PING)) == [PingAcknowledged(GOODBYE_PING)]
    assert split(connection.take_output())[0][3][:4] == f.UINT32.pack(3)
    connection.goodbye_over()
    assert receive(connection, headers(5)) == []
    assert not connection.drained
    connection.reset(stream)
    connection.reset(connection.streams[3])
    assert connection.drained


def test_pings() -> None:
    """Theirs is answered, ours is reported."""
    connection = greeted(HboneClient)
    connection.ping(b"abcdefgh")
    assert split(connection.take_output()) == [(f.PING, 0, 0, b"abcdefgh")]

    assert receive(connection, frame(f.PING, 0, 0, b"12345678")) == []
    assert split(connection.take_output()) == [(f.PING, f.ACK, 0, b"12345678")]
    assert receive(connection, frame(f.PING, f.ACK, 0, b"abcdefgh")) == [PingAcknowledged(b"abcdefgh")]


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([data(0, b"x")], PROTOCOL),
        ([data(5, b"x")], PROTOCOL),
        ([headers(3), data(2, b"x")], PROTOCOL),
        ([headers(3), f.rst_stream(2, 0)], PROTOCOL),
        ([headers(3), f.window_update(2, 1)], PROTOCOL),
        ([data(1, b"", f.PADDED)], SIZE),
        ([data(1, b"\x05abc", f.PADDED)], PROTOCOL),
        ([headers(0)], PROTOCOL),
        ([headers(2)], PROTOCOL),
        ([headers(3, b"", f.PADDED | f.END_HEADERS)], SIZE),
        ([headers(3, b"\x05ab", f.PADDED | f.END_HEADERS)], PROTOCOL),
        ([headers(3, b"\0\0", f.HAS_PRIORITY | f.END_HEADERS)], SIZE),
        ([headers(3, b"\0\0\0\x03\0" + BLOCK, f.HAS_PRIORITY | f.END_HEADERS)], PROTOCOL),
        ([headers(3, b"\x80")], COMPRESSION),
        ([headers(3, flags=0), data(1, b"x")], PROTOCOL),
        ([headers(3, flags=0), frame(f.CONTINUATION, 0, 5)], PROTOCOL),
        ([frame(f.CONTINUATION, 0, 1)], PROTOCOL),
        ([f.rst_stream(0, 0)], PROTOCOL),
        ([f.rst_stream(9, 0)], PROTOCOL),
        ([frame(f.RST_STREAM, 0, 1, b"abc")], SIZE),
        ([f.window_update(0, 0)], PROTOCOL),
        ([f.window_update(0, f.MAX_WINDOW)], FLOW),
        ([f.window_update(9, 1)], PROTOCOL),
        ([frame(f.WINDOW_UPDATE, 0, 1, b"abc")], SIZE),
        ([frame(f.PING, 0, 1, bytes(8))], PROTOCOL),
        ([frame(f.PING, 0, 0, bytes(7))], SIZE),
        ([frame(f.SETTINGS, 0, 1)], PROTOCOL),
        ([frame(f.SETTINGS, 0, 0, b"abc")], SIZE),
        ([frame(f.SETTINGS, f.ACK, 0, bytes(6))], SIZE),
        ([f.settings(((f.ENABLE_PUSH, 2),))], PROTOCOL),
        ([f.settings(((f.INITIAL_WINDOW_SIZE, 2**31),))], FLOW),
        ([f.window_update(1, f.MAX_WINDOW - 65_535), f.settings(((f.INITIAL_WINDOW_SIZE, 65_536),))], FLOW),
        ([f.settings(((f.MAX_FRAME_SIZE, 16_383),))], PROTOCOL),
        ([f.settings(((f.MAX_FRAME_SIZE, 2**24),))], PROTOCOL),
        ([frame(f.GOAWAY, 0, 1, bytes(8))], PROTOCOL),
        ([frame(f.GOAWAY, 0, 0, bytes(7))], SIZE),
        ([frame(f.PRIORITY, 0, 0, bytes(5))], PROTOCOL),
        ([frame(f.PRIORITY, 0, 1, bytes(4))], SIZE),
        ([frame(f.PRIORITY, 0, 1, b"\0\0\0\x01\0")], PROTOCOL),
        ([frame(f.PUSH_PROMISE, 0, 1, bytes(8))], PROTOCOL),
        ([f.FRAME_HEADER.pack(0xFFFFFF00, 0, 1)], SIZE),
        ([f.FRAME_HEADER.pack(MAX_GATHERED_BYTES + 1 << 8 | f.HEADERS, 0, 3)], SIZE),
    ],
)
def test_what_ends_the_connection(frames: list[bytes], code: ErrorCode) -> None:
    """Each of RFC 9113's connection errors, with its own code."""
    connection, _ = accepted()
    breaks(connection, *frames, code=code)


def test_an_oversized_list_and_a_bomb() -> None:
    """16 KiB decoded is answered 431; 64 KiB would break the decoder's step."""
    bomb = b"\x40\x01a" + b"\x7f\x81\x1e" + b"v" * 3968 + b"\xbe" * 100
    breaks(greeted(HboneServer), headers(1, bomb), code=CALM)


def test_continuations() -> None:
    """A block may be spread, within bounds of number and of bytes (CVE-2024-27919)."""
    connection = greeted(HboneServer)
    parts = [
        headers(1, BLOCK[:5], 0),
        frame(f.CONTINUATION, 0, 1),
        frame(f.CONTINUATION, f.END_HEADERS, 1, BLOCK[5:]),
    ]
    assert receive(connection, *parts)[0].authority == AUTHORITY
    breaks(connection, headers(3, b"", 0), frame(f.CONTINUATION, 0, 3) * 9, code=CALM)

    many = frame(f.CONTINUATION, 0, 1, bytes(16_000))
    breaks(greeted(HboneServer), headers(1, BLOCK, 0), many * 3, code=CALM)


@pytest.mark.parametrize(
    ("flood", "allowed"),
    [
        (frame(f.PING, 0, 0, bytes(8)), budget.PINGS_PER_SECOND),
        (f.settings(()), budget.SETTINGS_PER_SECOND - 1),
        (data(1, b""), budget.CONSECUTIVE_EMPTY_DATA),
        (frame(f.PRIORITY, 0, 7, bytes(5)), budget.PRIORITY_BASE + budget.PRIORITY_PER_STREAM),
        (frame(200, 0, 0, b"x"), budget.IGNORED_PER_SECOND),
        (f.window_update(1, 1), budget.UPDATES_BASE + budget.UPDATES_PER_STREAM),
        (frame(f.PING, f.ACK, 0, bytes(8)), budget.IGNORED_PER_SECOND + budget.LEFTOVERS_PER_STREAM),
    ],
    ids=["ping", "settings", "empty-data", "priority", "unknown", "window-update", "ping-ack"],
)
def test_floods_of_cheap_frames(flood: bytes, allowed: int) -> None:
    """Each costs the peer nothing and us something: after its budget the connection ends."""
    connection, _ = accepted()
    receive(connection, flood * allowed)
    breaks(connection, flood, code=CALM)


def test_one_settings_frame_may_not_say_everything_a_thousand_times() -> None:
    """Each change of the first window is one of every stream's: 16 KiB of them took 53 ms on 200 streams."""
    connection, _ = accepted()
    some = [(f.INITIAL_WINDOW_SIZE, 65_535 + number) for number in range(budget.SETTINGS_PER_FRAME + 1)]
    receive(connection, f.settings(some[1:]))
    breaks(connection, f.settings(some), code=CALM)


def test_budgets_refill() -> None:
    """Twenty PINGs a second for an hour are a keen peer, not an attack."""
    connection, _ = accepted()
    for second in range(100):
        receive(connection, frame(f.PING, 0, 0, bytes(8)) * 20, now=float(second))


def test_rapid_reset() -> None:
    """CVE-2023-44487: open and reset, a hundred times."""
    connection = greeted(HboneServer)
    burst = [headers(2 * n + 1) + f.rst_stream(2 * n + 1, 8) for n in range(budget.PREMATURE_RESETS)]
    receive(connection, *burst)
    breaks(connection, headers(999), f.rst_stream(999, 8), code=CALM)


def test_made_you_reset() -> None:
    """CVE-2025-8671: the peer breaks rules so that we reset; it pays from the same budget."""
    connection = greeted(HboneServer)
    burst = [headers(2 * n + 1) + f.window_update(2 * n + 1, 0) for n in range(budget.PREMATURE_RESETS)]
    receive(connection, *burst)
    breaks(connection, headers(999), f.window_update(999, 0), code=CALM)


def test_a_slow_rapid_reset_is_noticed_by_its_share() -> None:
    """More than half of two hundred streams reset before their answer is no accident."""
    connection = greeted(HboneServer)
    for number in range(budget.PREMATURE_JUDGED_FROM_STREAMS - 1):
        receive(connection, headers(2 * number + 1), f.rst_stream(2 * number + 1, 8), now=number * 1.0)
    breaks(connection, headers(999), f.rst_stream(999, 8), code=CALM, now=200.0)


def test_resets_after_the_answer_are_ordinary() -> None:
    """An application that aborts its connections is no attacker."""
    connection = greeted(HboneServer)
    for number in range(500):
        (request,) = receive(connection, headers(2 * number + 1))
        connection.accept(request.stream)
        receive(connection, f.rst_stream(2 * number + 1, 8))


def test_what_was_reset_before_the_end_is_told() -> None:
    """In one read: a stream's reset, then a broken rule. The stream is gone, so somebody must hear of it."""
    connection, stream = accepted()
    with pytest.raises(HboneError) as caught:
        receive(connection, f.rst_stream(1, 8), frame(f.PING, 0, 1, bytes(8)))
    assert caught.value.events == [StreamReset(stream, 8, False, "reset by the peer")]
