"""HBONE connections with something on them, and what is said to them."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.errors import LocalProtocolError
from ambient.wire import hbone_frames as f
from ambient.wire import hbone_headers as h
from ambient.wire.hbone import HboneConnection
from ambient.wire.hbone_client import HboneClient
from ambient.wire.hbone_events import (
    RequestReceived,
    Stream,
)
from ambient.wire.hbone_frames import ErrorCode, frame
from ambient.wire.hbone_server import HboneServer
from ambient.wire.hbone_split import HboneError

AUTHORITY = "10.244.1.3:80"
BLOCK = h.encode_request(AUTHORITY, ())
OK = h.encode_response(200, ())
GET = b"\x82\x87\x84\x01\x01x"  # :method GET, :scheme https, :path /, :authority x
PROTOCOL, SIZE, CALM = ErrorCode.PROTOCOL_ERROR, ErrorCode.FRAME_SIZE_ERROR, ErrorCode.ENHANCE_YOUR_CALM
FLOW, COMPRESSION, CLOSED = ErrorCode.FLOW_CONTROL_ERROR, ErrorCode.COMPRESSION_ERROR, ErrorCode.STREAM_CLOSED


def headers(stream_id: int, block: bytes = BLOCK, flags: int = f.END_HEADERS) -> bytes:
    return frame(f.HEADERS, flags, stream_id, block)


def data(stream_id: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(f.DATA, flags, stream_id, payload)


def receive(connection: HboneConnection, *frames: bytes, now: float = 0.0) -> list[Any]:
    return list(connection.receive_data(memoryview(b"".join(frames)), now))


def greeted(role: type[HboneConnection], *settings: tuple[int, int], **more: Any) -> HboneConnection:
    """A connection after both greetings, with nothing left to send."""
    connection = role(**more)
    receive(connection, f.PREFACE if role is HboneServer else b"", f.settings(settings))
    connection.take_output()
    return connection


def requested(*, stream_id: int = 1, **more: Any) -> tuple[HboneConnection, Stream]:
    """A server with one CONNECT to answer."""
    connection = greeted(HboneServer, **more)
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
    connection = greeted(HboneClient, *settings)
    stream = connection.open(AUTHORITY)
    receive(connection, headers(1, OK))
    connection.take_output()
    return connection, stream


def split(out: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of every frame in *out*."""
    found = []
    while out:
        size_and_kind, flags, stream_id = f.FRAME_HEADER.unpack_from(out)
        size, kind = size_and_kind >> 8, size_and_kind & 0xFF
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


def hpack_decode(block: bytes) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in h.HeaderDecoder().decode(block)]
