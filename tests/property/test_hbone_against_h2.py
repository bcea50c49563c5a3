"""The same frames to our server and to h2's: both go on, or both end the connection.

Where they differ, the difference is listed with the section of RFC 9113 (or the budget) that allows it; an
unlisted one is a fault of ours or a find in h2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
from hypothesis import event, given, settings
from hypothesis import strategies as st

from ambient.errors import RemoteProtocolError
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from ambient.wire.hbone_events import DataReceived, RequestReceived
from ambient.wire.hbone_server import HboneServer


@dataclass(frozen=True)
class Accepted:
    """A difference that is meant.

    Attributes:
        strict: Who ends the connection: "ours" or "h2".
        reason: What the strict one says, as a regular expression.
        section: What lets the two differ.
    """

    strict: str
    reason: str
    section: str


ACCEPTED = (
    # Ours is the stricter.
    Accepted("ours", "flood of", "10.5: limits against floods are an endpoint's own"),
    Accepted("ours", "RST_STREAM on idle stream", "6.4: MUST be a connection error; h2 ignores it"),
    Accepted("ours", "HEADERS on closed stream", "5.1, closed: after END_STREAM a connection error"),
    Accepted("ours", "CONTINUATION without HEADERS", "6.10: MUST be a connection error; h2: not if reset"),
    # h2 is the stricter: it ends the connection where RFC 9113 asks for a stream error only.
    Accepted("h2", "Trailers must have END_STREAM", "8.1.1: malformed, a stream error"),
    Accepted("h2", "pseudo-header in trailer", "8.1, 8.1.1: malformed, a stream error"),
    Accepted("h2", "duplicate pseudo-header", "8.3, 8.1.1: malformed, a stream error"),
    Accepted("h2", "uppercase header name", "8.2.1, 8.1.1: malformed, a stream error"),
    Accepted("h2", "Connection-specific header", "8.2.2, 8.1.1: malformed, a stream error"),
    Accepted("h2", "missing mandatory", "8.3.1, 8.1.1: malformed, a stream error"),
    Accepted("h2", "does not have an :authority", "8.5, 8.1.1: malformed, a stream error"),
    Accepted("h2", "non-compliant data", "6.9: WINDOW_UPDATE of 0 on a stream is a stream error"),
    Accepted("h2", "in state ConnectionState.CLOSED", "6.8: a GOAWAY ends nothing that is under way"),
)

CONNECT = h.encode_request("10.0.0.1:80", ())
BLOCKS = (
    CONNECT,
    b"\x82\x87\x84\x01\x01x",
    b"\x83\x87\x84\x01\x01x",
    b"\x02\x07CONNECT",
    CONNECT + b"\x00\x03Abc\x01x",
    CONNECT + b"\x00\x0aconnection\x01x",
    b"\x00\x03x-a\x01b",
    b"\x80",
    b"\xbe",
    b"\x40\x01a\x01b",
    b"",
)
streams = st.sampled_from([1] * 12 + [3] * 8 + [5] * 4 + [7, 2, 0])
connections = st.sampled_from([0] * 12 + [1])
headers = st.builds(
    lambda flags, stream, block: f.frame(f.HEADERS, flags, stream, block),
    st.sampled_from([4] * 6 + [5] * 6 + [0]),
    streams,
    st.sampled_from((CONNECT,) * 6 + BLOCKS),
)
data = st.builds(
    lambda flags, stream, payload: f.frame(f.DATA, flags, stream, payload),
    st.sampled_from([0, 0, 1, 8]),
    streams,
    st.sampled_from([b"", b"x", b"\x02abc", b"\x09abc", bytes(1000)]),
)
some = st.sampled_from


def frame_of(kind: int, flags: list[int], numbers: st.SearchStrategy[int], payloads: list[bytes]) -> Any:
    """Frames of one kind."""
    return st.builds(lambda *parts: f.frame(kind, *parts), some(flags), numbers, some(payloads))


SETTINGS = [b""] * 5 + [
    b"\0\x04\0\0\0\0", b"\0\x04\xff\xff\xff\xff", b"\0\x02\0\0\0\x02", b"\0\x05\0\0\0\0", b"x",
    b"\0\x99\0\0\0\0",
]  # fmt: skip
control = st.one_of(
    st.builds(f.rst_stream, streams, some([0, 7, 8, 99])),
    st.builds(f.window_update, streams, some([1, 1000, 0, 2**31 - 1])),
    st.builds(f.goaway, some([0, 1]), some([0, 1])),
    frame_of(f.PRIORITY, [0], streams, [bytes(5), b"\0\0\0\x01\x10", b"x"]),
    frame_of(f.PING, [0, 1], connections, [bytes(8)] * 5 + [b"x"]),
    frame_of(f.SETTINGS, [0, 0, 0, 0, 1], connections, SETTINGS),
    frame_of(f.CONTINUATION, [0, 4], streams, [b"", CONNECT]),
    frame_of(f.PUSH_PROMISE, [4], streams, [bytes(8)]),
    frame_of(0xFA, [3], streams, [b"?"]),
)
opened = st.sampled_from([[], [f.frame(f.HEADERS, 4, 1, CONNECT)], [f.frame(f.HEADERS, 5, 1, CONNECT)]])
sequences = st.tuples(opened, st.lists(st.one_of(headers, data, control), min_size=1, max_size=8)).map(
    lambda parts: parts[0] + parts[1]
)


def ours(frames: list[bytes]) -> str:
    """ "" if our server goes on, else why it ended the connection."""
    connection = HboneServer()
    try:
        connection.receive_data(memoryview(f.PREFACE + f.settings(())), 0.0)
        for number, frame in enumerate(frames):
            for happened in connection.receive_data(memoryview(frame), float(number)):
                if isinstance(happened, RequestReceived) and happened.stream.stream_id in connection.streams:
                    connection.accept(happened.stream)
                elif isinstance(happened, DataReceived):
                    connection.credit(happened.stream, happened.total)
            connection.take_output()
    except RemoteProtocolError as exc:
        return str(exc)
    return ""


def theirs(frames: list[bytes]) -> str:
    """The same of h2's."""
    connection = h2.connection.H2Connection(
        h2.config.H2Configuration(client_side=False, header_encoding=None)
    )
    connection.initiate_connection()
    try:
        connection.receive_data(f.PREFACE + f.settings(()))
        for frame in frames:
            for happened in connection.receive_data(frame):
                if isinstance(happened, h2.events.RequestReceived):
                    fields = dict(happened.headers)
                    if fields.get(b":method") == b"CONNECT":
                        connection.send_headers(happened.stream_id, [(":status", "200")])
    except h2.exceptions.StreamClosedError as exc:
        return f"StreamClosedError: {exc}"
    except (h2.exceptions.ProtocolError, hpack.HPACKError) as exc:
        return f"{type(exc).__name__}: {exc}"
    return ""


@given(sequences)
@settings(max_examples=400)
def test_both_decide_alike(frames: list[bytes]) -> None:
    """Or for a listed reason."""
    mine, its = ours(frames), theirs(frames)
    if bool(mine) == bool(its):
        event("alike")
        return
    strict, reason = ("ours", mine) if mine else ("h2", its)
    assert any(each.strict == strict and re.search(each.reason, reason) for each in ACCEPTED), (
        strict,
        reason,
    )
