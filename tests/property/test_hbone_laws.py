"""HBONE obeys h2, whatever the order, the sizes and the way the bytes are cut."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
from hypothesis import given
from hypothesis import strategies as st

from ambient.errors import LocalProtocolError, RemoteProtocolError
from ambient.wire import hbone_frames as f
from ambient.wire.hbone import HboneConnection
from ambient.wire.hbone_client import HboneClient
from ambient.wire.hbone_events import (
    DataReceived,
    GoawayReceived,
    RequestReceived,
    ResponseReceived,
    Stream,
    StreamEnded,
    StreamReset,
)
from ambient.wire.hbone_server import HboneServer

AUTHORITY = "10.244.1.3:80"
ROLES = (HboneClient, HboneServer)
texts = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=200)
names = st.from_regex(r"x-[a-z0-9-]{0,20}[a-z]", fullmatch=True)
header_lists = st.lists(st.tuples(names, texts), max_size=5).map(tuple)
payloads = st.binary(max_size=40_000)


class Oracle:
    """h2 at the other end: feeds what we say to it, and what it says to us, in slices."""

    def __init__(self, role: type[HboneConnection], cut: Callable[[bytes], list[bytes]]) -> None:
        self.ours = role()
        config = h2.config.H2Configuration(client_side=role is HboneServer, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(2**24)
        self.cut = cut
        self.got: list[Any] = []
        self.h2_got: list[Any] = []
        self.data: dict[int, bytes] = {}

    def exchange(self) -> None:
        """Carry bytes until nobody has anything to say."""
        for _ in range(50):
            ours, theirs = self.ours.take_output(), self.h2.data_to_send()
            if not ours and not theirs:
                return
            for piece in self.cut(ours):
                self.h2_got += self.h2.receive_data(piece)
            for piece in self.cut(theirs):
                self._receive(piece)
        raise AssertionError("they never stop talking")

    def _receive(self, piece: bytes) -> None:
        for event in self.ours.receive_data(memoryview(piece), 0.0):
            if isinstance(event, DataReceived):
                data = b"".join(event.parts)
                assert len(data) == event.total
                number = event.stream.stream_id
                self.data[number] = self.data.get(number, b"") + data
                self.ours.credit(event.stream, event.total)
            else:
                self.got.append(event)

    def send(self, stream: Stream, data: bytes) -> int:
        """What the engine does: frame as much as the windows allow."""
        sent = 0
        out = bytearray(self.ours.take_output())
        while sent < len(data) and (room := self.ours.sendable(stream)) > 0:
            size = min(room, self.ours.peer_max_frame, len(data) - sent)
            header = bytearray(9)
            f.pack_data_header(header, 0, size << 8, stream.stream_id)
            out += header + data[sent : sent + size]
            self.ours.sent(stream, size)
            sent += size
        for piece in self.cut(bytes(out)):
            self.h2_got += self.h2.receive_data(piece)
        return sent

    def found(self, kind: type) -> list[Any]:
        return [event for event in (*self.got, *self.h2_got) if isinstance(event, kind)]


@st.composite
def cutters(draw: st.DrawFn) -> Callable[[bytes], list[bytes]]:
    """Ways to cut a byte string: TCP keeps order, not edges."""
    steps = draw(st.lists(st.integers(1, 20_000), min_size=1, max_size=6))

    def cut(data: bytes) -> list[bytes]:
        pieces, position, turn = [], 0, 0
        while position < len(data):
            step = steps[turn % len(steps)] if turn < 40 else 65_536
            pieces.append(data[position : position + step])
            position += step
            turn += 1
        return pieces

    return cut


@given(cutters(), header_lists, payloads, payloads, st.integers(0, 255))
def test_our_server_understands_h2(
    cut: Callable[[bytes], list[bytes]], headers: Any, up: bytes, down: bytes, pad: int
) -> None:
    """A whole CONNECT from h2's client: headers, padded data, both ends of file."""
    oracle = Oracle(HboneServer, cut)
    oracle.exchange()
    oracle.h2.send_headers(1, [(":method", "CONNECT"), (":authority", AUTHORITY), *headers])
    oracle.exchange()
    (request,) = oracle.found(RequestReceived)
    assert (request.authority, request.headers) == (AUTHORITY, headers)

    oracle.ours.accept(request.stream, (("baggage", "x=y"),))
    oracle.exchange()
    for start in range(0, len(up), 15_000):
        oracle.h2.send_data(1, up[start : start + 15_000], pad_length=pad or None)
        oracle.exchange()
    oracle.h2.end_stream(1)
    oracle.exchange()
    assert oracle.send(request.stream, down) == len(down)
    oracle.ours.end(request.stream)
    oracle.exchange()

    assert oracle.data.get(1, b"") == up
    assert b"".join(event.data for event in oracle.found(h2.events.DataReceived)) == down
    assert len(oracle.found(StreamEnded)) == len(oracle.found(h2.events.StreamEnded)) == 1
    assert not oracle.ours.streams


@given(cutters(), header_lists, payloads, payloads, st.integers(0, 255))
def test_our_client_understands_h2(
    cut: Callable[[bytes], list[bytes]], headers: Any, up: bytes, down: bytes, pad: int
) -> None:
    """The same with the roles exchanged."""
    oracle = Oracle(HboneClient, cut)
    oracle.exchange()
    stream = oracle.ours.open(AUTHORITY, headers)
    oracle.exchange()
    (request,) = oracle.found(h2.events.RequestReceived)
    assert list(request.headers) == [(":method", "CONNECT"), (":authority", AUTHORITY), *headers]

    oracle.h2.send_headers(1, [(":status", "200"), *headers])
    oracle.exchange()
    assert oracle.found(ResponseReceived) == [ResponseReceived(stream, 200, headers)]
    for start in range(0, len(down), 15_000):
        oracle.h2.send_data(1, down[start : start + 15_000], pad_length=pad or None)
        oracle.exchange()
    oracle.h2.end_stream(1)
    assert oracle.send(stream, up) == len(up)
    oracle.ours.end(stream)
    oracle.exchange()

    assert oracle.data.get(1, b"") == down
    assert b"".join(event.data for event in oracle.found(h2.events.DataReceived)) == up
    assert not oracle.ours.streams


@given(
    cutters(),
    st.sampled_from(ROLES),
    st.integers(1, 2**31 - 1),
    st.integers(16_384, 2**24 - 1),
)
def test_settings_of_h2_are_obeyed(
    cut: Callable[[bytes], list[bytes]], role: type[HboneConnection], window: int, max_frame: int
) -> None:
    """The peer's limits are limits: h2 would raise if we sent more than it allowed."""
    oracle = Oracle(role, cut)
    codes = h2.settings.SettingCodes
    oracle.h2.update_settings({codes.INITIAL_WINDOW_SIZE: window, codes.MAX_FRAME_SIZE: max_frame})
    oracle.exchange()

    assert oracle.ours.peer_first_window == window
    assert oracle.ours.peer_max_frame == max_frame


@given(cutters(), st.integers(1, 30_000), payloads)
def test_what_does_not_fit_waits(cut: Callable[[bytes], list[bytes]], window: int, data: bytes) -> None:
    """With a small window the rest goes out as the peer gives it back, never before."""
    oracle = Oracle(HboneClient, cut)
    oracle.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    oracle.exchange()
    stream = oracle.ours.open(AUTHORITY)
    oracle.exchange()
    oracle.h2.send_headers(1, [(":status", "200")])
    oracle.exchange()

    sent = 0
    while sent < len(data):
        step = oracle.send(stream, data[sent:])
        assert 0 < step <= window
        sent += step
        oracle.h2.acknowledge_received_data(step, 1)
        oracle.exchange()
        if not oracle.ours.sendable(stream):
            oracle.h2.increment_flow_control_window(window, 1)
            oracle.exchange()

    assert b"".join(event.data for event in oracle.found(h2.events.DataReceived)) == data


@given(cutters(), st.sampled_from(list(h2.errors.ErrorCodes)))
def test_resets_and_goaway_arrive(cut: Callable[[bytes], list[bytes]], code: h2.errors.ErrorCodes) -> None:
    """An abort at one end is an abort at the other, with its reason."""
    oracle = Oracle(HboneClient, cut)
    oracle.exchange()
    first, second = oracle.ours.open(AUTHORITY), oracle.ours.open(AUTHORITY)
    oracle.exchange()
    oracle.h2.reset_stream(1, code)
    oracle.ours.reset(second)
    oracle.exchange()
    oracle.h2.close_connection(code)
    oracle.exchange()

    (reset,) = oracle.found(StreamReset)
    assert (reset.stream, reset.code) == (first, code)
    (told,) = oracle.found(h2.events.StreamReset)
    assert told.stream_id == second.stream_id
    (goodbye,) = oracle.found(GoawayReceived)
    assert goodbye.code == code
    assert not oracle.ours.can_open


frames = st.builds(
    f.frame,
    st.sampled_from([*range(11), 200]),
    st.sampled_from([0, 1, 4, 5, 8, 9, 0x20, 0x2D, 255]),
    st.sampled_from([0, 1, 1, 2, 3, 5, 2**31 - 1]),
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from([bytes(4), b"\0\0\0\x01", bytes(5), bytes(8), b"\0\x04\xff\xff\xff\xff"]),
        st.just(b"\x02\x07CONNECT\x01\x0810.0.0.1"),
        st.just(b"\x88"),
    ),
)


def started(role: type[HboneConnection]) -> HboneConnection:
    """A connection whose peer has greeted."""
    connection = role()
    preface = f.PREFACE if role is HboneServer else b""
    connection.receive_data(memoryview(preface + f.settings(())), 0.0)
    return connection


@given(st.sampled_from(ROLES), st.lists(frames, max_size=20), st.booleans())
def test_any_frames_in_any_order_raise_only_remote_protocol_error(
    role: type[HboneConnection], sequence: list[bytes], opened: bool
) -> None:
    """Whatever the peer sends, the worst outcome is "close the connection"."""
    connection = started(role)
    if opened and role is HboneClient:
        connection.open(AUTHORITY)
    with suppress(RemoteProtocolError):
        for data in sequence:
            for event in connection.receive_data(memoryview(data), 0.0):
                if isinstance(event, RequestReceived) and event.stream.stream_id in connection.streams:
                    connection.accept(event.stream)
            connection.take_output()


@given(st.sampled_from(ROLES), st.lists(st.binary(max_size=64), max_size=8), st.booleans())
def test_garbage_raises_only_remote_protocol_error(
    role: type[HboneConnection], chunks: list[bytes], greeted: bool
) -> None:
    """The same for bytes that are no frames at all."""
    connection = started(role) if greeted else role()
    with suppress(RemoteProtocolError):
        for chunk in chunks:
            connection.receive_data(memoryview(chunk), 0.0)


@given(st.lists(st.sampled_from(["open", "end", "reset", "close", "ping"]), max_size=20))
def test_our_own_order_never_confuses_h2(verbs: list[str]) -> None:
    """Whatever our callers do, h2 finds nothing to complain about."""
    oracle = Oracle(HboneClient, lambda data: [data] if data else [])
    oracle.exchange()
    streams: list[Stream] = []
    for verb in verbs:
        match verb:
            case "open":
                with suppress(LocalProtocolError):
                    streams.append(oracle.ours.open(AUTHORITY))
            case "end" if streams:
                oracle.ours.end(streams[0])
            case "reset" if streams:
                oracle.ours.reset(streams.pop())
            case "close":
                oracle.exchange()
            case "ping":
                oracle.ours.ping(b"12345678")
    oracle.exchange()
