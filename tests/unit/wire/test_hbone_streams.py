"""Windows: how they grow, and what holds a peer back."""

from __future__ import annotations

import pytest

from ambient.wire import hbone_frames as f
from ambient.wire.hbone_budget import WindowBudget
from ambient.wire.hbone_events import (
    StreamReset,
    WindowOpened,
)
from ambient.wire.hbone_frames import ErrorCode
from ambient.wire.hbone_streams import (
    CONNECTION_WINDOW_BYTES,
    FIRST_WINDOW_BYTES,
    GROW_AFTER_WINDOWS,
    LARGEST_WINDOW_BYTES,
)
from tests.unit.wire.hbone_scene import (
    CLOSED,
    FLOW,
    OK,
    accepted,
    breaks,
    data,
    headers,
    opened,
    receive,
    requested,
    split,
)


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


def test_bytes_after_a_reset_in_the_same_frame_are_dropped() -> None:
    """A stream that ends in the middle of a payload takes nothing more of it."""
    connection, stream = accepted()
    receive(connection, data(1, bytes(100), f.END_STREAM)[:50])
    connection.reset(stream)

    assert receive(connection, bytes(59)) == []


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


def test_a_busy_connection_earns_window_updates() -> None:
    """Envoy's rule: what we send is what the peer has to give back."""
    connection, stream = opened()
    for _ in range(100):
        connection.sent(stream, 10)
        receive(connection, f.window_update(1, 10) * 15)
