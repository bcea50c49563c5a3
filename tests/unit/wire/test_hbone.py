"""HBONE frame by frame: the whole conversation, and every way to break it."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.errors import LocalProtocolError
from ambient.wire import hbone_budget as budget
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from ambient.wire.hbone import (
    CONNECTION_WINDOW_BYTES,
    FIRST_WINDOW_BYTES,
    GOODBYE_PING,
    GROW_AFTER_WINDOWS,
    LARGEST_WINDOW_BYTES,
    HboneConnection,
    Role,
)
from ambient.wire.hbone_budget import WindowBudget
from ambient.wire.hbone_events import (
    DataReceived,
    GoawayReceived,
    PingAcknowledged,
    RequestReceived,
    RequestRejected,
    ResponseReceived,
    SettingsReceived,
    Stream,
    StreamEnded,
    StreamReset,
    WindowOpened,
)
from ambient.wire.hbone_frames import ErrorCode, frame
from ambient.wire.hbone_split import MAX_FRAME_BYTES, MAX_GATHERED_BYTES, HboneError

AUTHORITY = "10.244.1.3:80"
BLOCK = h.encode_request(AUTHORITY, ())
OK = h.encode_response(200, ())
GET = b"\x82\x87\x84\x01\x01x"  # :method GET, :scheme https, :path /, :authority x


def headers(stream_id: int, block: bytes = BLOCK, flags: int = f.END_HEADERS) -> bytes:
    return frame(f.HEADERS, flags, stream_id, block)


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(f.DATA, flags, stream_id, payload)


def receive(connection: HboneConnection, *frames: bytes, now: float = 0.0) -> list[Any]:
    return list(connection.receive_data(memoryview(b"".join(frames)), now))


def greeted(role: Role, *settings: tuple[int, int], **more: Any) -> HboneConnection:
    """A connection after both greetings, with nothing left to send."""
    connection = HboneConnection(role, **more)
    receive(connection, f.PREFACE if role is Role.SERVER else b"", f.settings(settings))
    connection.take_output()
    return connection


def requested(*, stream_id: int = 1, **more: Any) -> tuple[HboneConnection, Stream]:
    """A server with one CONNECT to answer."""
    connection = greeted(Role.SERVER, **more)
    (event,) = receive(connection, headers(stream_id))
    assert isinstance(event, RequestReceived)
    return connection, event.stream


def accepted() -> tuple[HboneConnection, Stream]:
    """A server with one open stream."""
    connection, stream = requested()
    connection.accept(stream)
    connection.take_output()
    return connection, stream


def opened(*settings: tuple[int, int]) -> tuple[HboneConnection, Stream]:
    """A client with one open stream."""
    connection = greeted(Role.CLIENT, *settings)
    stream = connection.open(AUTHORITY)
    receive(connection, headers(1, OK))
    connection.take_output()
    return connection, stream


def split(out: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of every frame in *out*."""
    found = []
    while out:
        high, low, kind, flags, stream_id = f.FRAME_HEADER.unpack_from(out)
        size = high << 8 | low
        found.append((kind, flags, stream_id, out[9 : 9 + size]))
        out = out[9 + size :]
    return found


def breaks(connection: HboneConnection, *frames: bytes, code: ErrorCode, now: float = 0.0) -> None:
    """The frames end the connection with *code*, and a GOAWAY says so."""
    with pytest.raises(HboneError, match=code.name) as caught:
        receive(connection, *frames, now=now)
    assert caught.value.code is code
    kind, _, _, payload = split(connection.take_output())[-1]
    assert (kind, payload[4:8]) == (f.GOAWAY, f.UINT32.pack(code))
    with pytest.raises(LocalProtocolError):
        receive(connection)


# The conversation --------------------------------------------------------------------------------


def test_greetings() -> None:
    """Who says what first; Istio's figures for windows and frames."""
    client, server = HboneConnection(Role.CLIENT), HboneConnection(Role.SERVER)
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
    client, server = HboneConnection(Role.CLIENT), HboneConnection(Role.SERVER)
    stream = client.open(AUTHORITY, (("baggage", "a=b"),))
    request = receive(server, client.take_output())[-1]
    assert request == RequestReceived(request.stream, AUTHORITY, (("baggage", "a=b"),))
    server.accept(request.stream, (("x", "y"),))
    assert receive(client, server.take_output())[-1] == ResponseReceived(stream, 200, (("x", "y"),))

    up = bytearray(9) + b"hello"
    f.pack_data_header(up, 0, stream.stream_id, 5)
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


def test_a_request_may_end_at_once() -> None:
    """END_STREAM on the HEADERS: the source has nothing to send, only to read."""
    connection = greeted(Role.SERVER)
    request, ended = receive(connection, headers(1, flags=f.END_HEADERS | f.END_STREAM))
    assert ended == StreamEnded(request.stream)
    connection.accept(request.stream)
    assert connection.streams


def test_an_answer_may_end_at_once() -> None:
    """The same from the other side."""
    connection = greeted(Role.CLIENT)
    stream = connection.open(AUTHORITY)
    events = receive(connection, headers(1, OK, f.END_HEADERS | f.END_STREAM))
    assert events == [ResponseReceived(stream, 200, ()), StreamEnded(stream)]


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
    connection = HboneConnection(Role.SERVER)
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


# Refusals ------------------------------------------------------------------------------------------


def test_a_message_by_itself_is_charged_like_any_other() -> None:
    """The short way and the long one must leave the same windows, or the two peers' counts drift apart."""
    (short, stream), (long, other) = accepted(), accepted()
    message = memoryview(data(1, b"ping"))

    assert short.take_message(message) is stream
    receive(long, message.tobytes())

    assert stream.receive_window == other.receive_window == FIRST_WINDOW_BYTES - 4
    assert short._receive_window == long._receive_window == CONNECTION_WINDOW_BYTES - 4
    assert not short.has_output


@pytest.mark.parametrize(
    "came",
    [
        b"",
        data(1, b"ping")[:8],
        data(1, b"ping")[:-1],
        data(1, b"ping") + b"\0",
        data(1, b"a") + data(1, b"b"),
        data(1, b""),
        data(1, b"ping", f.END_STREAM),
        data(1, b"\x00ping", f.PADDED),
        data(3, b"ping"),
        data(1, b"x" * (FIRST_WINDOW_BYTES + 1)),
        frame(f.PING, 0, 0, b"12345678"),
    ],
)
def test_what_is_no_message_by_itself(came: bytes) -> None:
    """Everything but the usual is judged by the long way, and asking changes nothing."""
    connection, stream = accepted()

    assert connection.take_message(memoryview(came)) is None
    assert stream.receive_window == FIRST_WINDOW_BYTES
    assert connection._receive_window == CONNECTION_WINDOW_BYTES
    assert not connection.has_output


def test_no_message_in_the_middle_of_something() -> None:
    """Payload that looks like a frame is payload."""
    connection, _ = accepted()
    inner = memoryview(data(1, b"ping"))
    receive(connection, data(1, bytes(100))[:-50])
    assert connection.take_message(inner) is None
    receive(connection, bytes(50))
    receive(connection, data(1, b"ping")[:5])
    assert connection.take_message(inner) is None

    breaks(*(broken := accepted())[:1], data(0, b"x"), code=ErrorCode.PROTOCOL_ERROR)
    assert broken[0].take_message(inner) is None


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


def hpack_decode(block: bytes) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in h.HeaderDecoder().decode(block)]


def test_a_refusal_without_a_text() -> None:
    """No body: the HEADERS end the stream."""
    connection = greeted(Role.SERVER)
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
    connection = greeted(Role.SERVER)
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
    connection = greeted(Role.SERVER, (f.INITIAL_WINDOW_SIZE, 0))
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


def test_one_stream_too_many_is_refused() -> None:
    """REFUSED_STREAM: the client may try again elsewhere."""
    connection = greeted(Role.SERVER, max_streams=1)
    events = receive(connection, headers(1), headers(3))

    assert [type(event) for event in events] == [RequestReceived, RequestRejected]
    assert split(connection.take_output()) == [(f.RST_STREAM, 0, 3, f.UINT32.pack(7))]


@pytest.mark.parametrize(
    ("flags", "after"), [(f.END_HEADERS, f.RST_STREAM), (f.END_HEADERS | f.END_STREAM, f.DATA)]
)
def test_a_refusal_by_the_peer(flags: int, after: int) -> None:
    """Any status but 2xx is the peer's last word; its body is not wanted."""
    connection = greeted(Role.CLIENT)
    stream = connection.open(AUTHORITY)
    connection.take_output()

    events = receive(connection, headers(1, h.encode_response(403, ()), flags))

    assert events == [ResponseReceived(stream, 403, ())]
    assert split(connection.take_output())[0][0] == after
    assert not connection.streams
    assert receive(connection, data(1, b"body")) == []


def test_informational_answers_are_passed_over() -> None:
    """103 before 200 is legal, if nobody's idea of HBONE."""
    connection = greeted(Role.CLIENT)
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
    connection = greeted(Role.CLIENT)
    stream = connection.open(AUTHORITY)

    event = receive(connection, *frames)[-1]

    assert event == StreamReset(stream, ErrorCode.PROTOCOL_ERROR, False, event.reason)
    assert connection.can_open


# Windows -------------------------------------------------------------------------------------------


def test_a_window_doubles_while_the_application_drains() -> None:
    """64 KiB for the idle many, 4 MiB for the busy few."""
    connection, stream = accepted()
    widths = []
    for _ in range(300 * GROW_AFTER_WINDOWS):
        receive(connection, data(1, bytes(16_384)))
        connection.credit(stream, 16_384)
        widths.append(stream.window)

    assert widths[0] == FIRST_WINDOW_BYTES
    assert sorted(set(widths)) == [FIRST_WINDOW_BYTES << n for n in range(7)]
    assert widths[-1] == LARGEST_WINDOW_BYTES
    assert stream.receive_window + stream.unreturned == stream.window


def test_a_window_stays_narrow_while_the_application_lags() -> None:
    """A stalled reader must not earn more room to stall in."""
    connection, stream = accepted()
    receive(connection, data(1, bytes(16_384)) * 4)
    connection.credit(stream, 40_000)

    assert stream.window == FIRST_WINDOW_BYTES
    assert stream.receive_window == 40_000
    assert split(connection.take_output())[-1] == (f.WINDOW_UPDATE, 0, 1, f.UINT32.pack(40_000))


def test_the_sum_of_windows_has_a_budget() -> None:
    """What all connections of a process may be made to hold; it comes back when a stream ends."""
    windows = WindowBudget(3 * FIRST_WINDOW_BYTES)
    connection, first = requested(windows=windows)
    (request,) = receive(connection, headers(3))
    for stream in (first, request.stream):
        for _ in range(GROW_AFTER_WINDOWS):
            receive(connection, data(stream.stream_id, bytes(16_384)) * 4)
            connection.credit(stream, 65_536)

    assert (first.window, request.stream.window) == (2 * FIRST_WINDOW_BYTES, FIRST_WINDOW_BYTES)
    assert windows.left == 0
    connection.release()
    assert windows.left == 3 * FIRST_WINDOW_BYTES


def test_what_the_kernel_swallows_earns_no_window() -> None:
    """An application that never reads looks like one that drains until its socket is full."""
    connection, stream = accepted()
    for _ in range(GROW_AFTER_WINDOWS - 1):
        receive(connection, data(1, bytes(16_384)) * 4)
        connection.credit(stream, 65_536)

    assert stream.window == FIRST_WINDOW_BYTES


def test_a_first_window_is_never_refused() -> None:
    """Every stream gets on; the budget then has nothing left for growth until some end."""
    windows = WindowBudget(FIRST_WINDOW_BYTES)
    connection, _ = requested(windows=windows)
    receive(connection, headers(3))

    assert windows.left == -FIRST_WINDOW_BYTES
    assert not windows.take(1)
    connection.release()
    assert windows.left == FIRST_WINDOW_BYTES


def test_the_connections_window_is_returned_on_receipt() -> None:
    """A stalled stream must not starve its neighbours."""
    connection, _ = accepted()
    numbers = range(3, 3 + 2 * 80, 2)
    receive(connection, *(headers(number) for number in numbers))
    connection.take_output()

    receive(connection, *(data(number, bytes(60_000)) for number in numbers))

    updates = [
        payload for kind, _, number, payload in split(connection.take_output()) if kind == f.WINDOW_UPDATE
    ]
    assert len(updates) == 1
    assert f.UINT32.unpack(updates[0])[0] >= CONNECTION_WINDOW_BYTES // 4


def test_no_credit_after_the_end() -> None:
    """The peer sends no more, so a WINDOW_UPDATE would be noise."""
    connection, stream = accepted()
    receive(connection, data(1, bytes(16_384)) * 3, data(1, b"", f.END_STREAM))
    connection.credit(stream, 49_152)

    assert connection.take_output() == b""


def test_data_over_the_streams_window() -> None:
    """The peer's fault, but only this stream's."""
    connection, stream = accepted()
    events = receive(connection, data(1, bytes(FIRST_WINDOW_BYTES)), data(1, b"x"))

    assert events[-1] == StreamReset(stream, ErrorCode.FLOW_CONTROL_ERROR, False, events[-1].reason)


def test_windows_open_by_updates_and_settings() -> None:
    """Room on a stream, on the connection, and on all streams at once."""
    connection, stream = opened()
    assert connection.sendable(stream) == 65_535
    connection.sent(stream, 65_535)
    assert connection.sendable(stream) == 0

    assert receive(connection, f.window_update(1, 10)) == [WindowOpened(stream)]
    assert connection.sendable(stream) == 0
    assert receive(connection, f.window_update(0, 4)) == [WindowOpened(None)]
    assert connection.sendable(stream) == 4
    receive(connection, f.settings(((f.INITIAL_WINDOW_SIZE, 0),)))
    assert connection.sendable(stream) == 10 - 65_535


def test_updates_for_streams_that_are_gone_are_nothing() -> None:
    """They crossed our reset."""
    connection, stream = opened()
    connection.reset(stream)
    connection.reset(stream)
    late = data(1, b"\x01late\0", f.PADDED)
    events = receive(connection, f.window_update(1, 10), f.rst_stream(1, 8), late, headers(1, OK))

    assert events == []
    assert split(connection.take_output()) == [(f.RST_STREAM, 0, 1, f.UINT32.pack(8))]


@pytest.mark.parametrize(
    ("update", "code"),
    [
        (f.window_update(1, 0), ErrorCode.PROTOCOL_ERROR),
        (f.window_update(1, f.MAX_WINDOW), ErrorCode.FLOW_CONTROL_ERROR),
    ],
)
def test_bad_updates_of_a_stream(update: bytes, code: ErrorCode) -> None:
    """Errors of the stream, counted against the peer (CVE-2025-8671)."""
    connection, stream = opened()

    (event,) = receive(connection, update)

    assert (event.stream, event.code) == (stream, code)
    assert connection._premature.premature == 1


# Endings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [ErrorCode.REFUSED_STREAM, ErrorCode.CANCEL])
def test_a_reset_by_the_peer(code: ErrorCode) -> None:
    """REFUSED_STREAM promises that nothing was done."""
    connection, stream = opened()
    refused = code is ErrorCode.REFUSED_STREAM

    assert receive(connection, f.rst_stream(1, code)) == [
        StreamReset(stream, code, refused, "reset by the peer")
    ]


def test_bytes_after_a_reset_in_the_same_frame_are_dropped() -> None:
    """A stream that ends in the middle of a payload takes nothing more of it."""
    connection, stream = accepted()
    receive(connection, data(1, bytes(100), f.END_STREAM)[:50])
    connection.reset(stream)

    assert receive(connection, bytes(59)) == []


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
    connection = greeted(Role.CLIENT)
    connection.ping(b"abcdefgh")
    assert split(connection.take_output()) == [(f.PING, 0, 0, b"abcdefgh")]

    assert receive(connection, frame(f.PING, 0, 0, b"12345678")) == []
    assert split(connection.take_output()) == [(f.PING, f.ACK, 0, b"12345678")]
    assert receive(connection, frame(f.PING, f.ACK, 0, b"abcdefgh")) == [PingAcknowledged(b"abcdefgh")]


def test_the_streams_of_a_client_are_limited_by_the_peer() -> None:
    """MAX_CONCURRENT_STREAMS counts the live ones."""
    connection = greeted(Role.CLIENT, (f.MAX_CONCURRENT_STREAMS, 1))
    stream = connection.open(AUTHORITY)
    assert not connection.can_open
    connection.reset(stream)
    assert connection.can_open
    with pytest.raises(LocalProtocolError):
        greeted(Role.SERVER).open(AUTHORITY)
    with pytest.raises(LocalProtocolError):
        connection.accept(connection.open(AUTHORITY))


# Broken rules --------------------------------------------------------------------------------------

PROTOCOL, SIZE, CALM = ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.ENHANCE_YOUR_CALM
FLOW, COMPRESSION, CLOSED = ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.COMPRESSION_ERROR, ErrorCode.STREAM_CLOSED


def test_the_preface_must_be_the_preface() -> None:
    """H1 and H2 of the threats: HTTP/1 on this port, or no SETTINGS."""
    breaks(HboneConnection(Role.SERVER), b"GET / HTTP/1.1\r\n", code=PROTOCOL)
    breaks(HboneConnection(Role.SERVER), f.PREFACE, headers(1), code=PROTOCOL)
    client = HboneConnection(Role.CLIENT)
    client.take_output()
    breaks(client, frame(f.SETTINGS, f.ACK, 0), code=PROTOCOL)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([data(0, b"x")], PROTOCOL),
        ([data(5, b"x")], PROTOCOL),
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
        ([f.FRAME_HEADER.pack(0xFFFF, 0xFF, 0, 0, 1)], SIZE),
        ([f.FRAME_HEADER.pack(MAX_GATHERED_BYTES >> 8, 1, f.HEADERS, 0, 3)], SIZE),
    ],
)
def test_what_ends_the_connection(frames: list[bytes], code: ErrorCode) -> None:
    """Each of RFC 9113's connection errors, with its own code."""
    connection, _ = accepted()
    breaks(connection, *frames, code=code)


def test_a_server_may_not_turn_push_on() -> None:
    """RFC 9113 6.5.2: only a client has a say in it."""
    breaks(greeted(Role.CLIENT), f.settings(((f.ENABLE_PUSH, 1),)), code=PROTOCOL)
    assert receive(greeted(Role.SERVER), f.settings(((f.ENABLE_PUSH, 1),))) == [SettingsReceived()]


@pytest.mark.parametrize("number", [2, 3])
def test_a_server_may_not_answer_what_nobody_asked(number: int) -> None:
    """Idle streams have no answers, pushed ones do not exist."""
    breaks(greeted(Role.CLIENT), headers(number, OK), code=PROTOCOL)


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


def test_data_after_the_end() -> None:
    """On a half-closed stream an error of the stream; on a closed one a reset, counted."""
    connection, stream = accepted()
    event = receive(connection, data(1, b"", f.END_STREAM), data(1, b"x", f.END_STREAM))[-1]
    assert (event.stream, event.code) == (stream, CLOSED)

    receive(connection, headers(3))
    other = connection.streams[3]
    connection.accept(other)
    connection.end(other)
    receive(connection, data(3, b"", f.END_STREAM))
    connection.take_output()
    assert receive(connection, data(3, b"x")) == []
    assert split(connection.take_output()) == [(f.RST_STREAM, 0, 3, f.UINT32.pack(CLOSED))]


def test_data_over_the_connections_window() -> None:
    """Only possible when the peer ignores the window: it is returned at every quarter."""
    connection, _ = accepted()
    connection._receive_window = 10
    breaks(connection, data(1, bytes(11)), code=FLOW)


def test_an_oversized_list_and_a_bomb() -> None:
    """16 KiB decoded is answered 431; 64 KiB would break the decoder's step."""
    bomb = b"\x40\x01a" + b"\x7f\x81\x1e" + b"v" * 3968 + b"\xbe" * 100
    breaks(greeted(Role.SERVER), headers(1, bomb), code=CALM)


def test_continuations() -> None:
    """A block may be spread, within bounds of number and of bytes (CVE-2024-27919)."""
    connection = greeted(Role.SERVER)
    parts = [
        headers(1, BLOCK[:5], 0),
        frame(f.CONTINUATION, 0, 1),
        frame(f.CONTINUATION, f.END_HEADERS, 1, BLOCK[5:]),
    ]
    assert receive(connection, *parts)[0].authority == AUTHORITY
    breaks(connection, headers(3, b"", 0), frame(f.CONTINUATION, 0, 3) * 9, code=CALM)

    many = frame(f.CONTINUATION, 0, 1, bytes(16_000))
    breaks(greeted(Role.SERVER), headers(1, BLOCK, 0), many * 3, code=CALM)


# Floods --------------------------------------------------------------------------------------------


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


def test_budgets_refill() -> None:
    """Twenty PINGs a second for an hour are a keen peer, not an attack."""
    connection, _ = accepted()
    for second in range(100):
        receive(connection, frame(f.PING, 0, 0, bytes(8)) * 20, now=float(second))


def test_a_busy_connection_earns_window_updates() -> None:
    """Envoy's rule: what we send is what the peer has to give back."""
    connection, stream = opened()
    for _ in range(100):
        connection.sent(stream, 10)
        receive(connection, f.window_update(1, 10) * 15)


def test_rapid_reset() -> None:
    """CVE-2023-44487: open and reset, a hundred times."""
    connection = greeted(Role.SERVER)
    burst = [headers(2 * n + 1) + f.rst_stream(2 * n + 1, 8) for n in range(budget.PREMATURE_RESETS)]
    receive(connection, *burst)
    breaks(connection, headers(999), f.rst_stream(999, 8), code=CALM)


def test_made_you_reset() -> None:
    """CVE-2025-8671: the peer breaks rules so that we reset; it pays from the same budget."""
    connection = greeted(Role.SERVER)
    burst = [headers(2 * n + 1) + f.window_update(2 * n + 1, 0) for n in range(budget.PREMATURE_RESETS)]
    receive(connection, *burst)
    breaks(connection, headers(999), f.window_update(999, 0), code=CALM)


def test_a_slow_rapid_reset_is_noticed_by_its_share() -> None:
    """More than half of two hundred streams reset before their answer is no accident."""
    connection = greeted(Role.SERVER)
    for number in range(budget.PREMATURE_JUDGED_FROM_STREAMS - 1):
        receive(connection, headers(2 * number + 1), f.rst_stream(2 * number + 1, 8), now=number * 1.0)
    breaks(connection, headers(999), f.rst_stream(999, 8), code=CALM, now=200.0)


def test_resets_after_the_answer_are_ordinary() -> None:
    """An application that aborts its connections is no attacker."""
    connection = greeted(Role.SERVER)
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
