"""Frames of the control wires: a 4-byte big-endian length, then one msgpack map.

Floor 1: sans-IO. Carries the distribution protocol (``ambient.wire.xds``) and the admin calls
(``ambient.wire.admin``). ZDS is not framed: it has one map per SEQPACKET packet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, TypeAlias

import msgpack

from ambient.errors import LocalProtocolError, RemoteProtocolError

Frame: TypeAlias = dict[str, Any]

_LENGTH = struct.Struct("!I")

# A snapshot of 10,000 workloads is sent in slices far below this; picked, not measured.
MAX_FRAME_BYTES = 4 * 1024 * 1024


def encode(frame: Frame) -> bytes:
    """Return *frame* as it goes on the wire.

    Raises:
        LocalProtocolError: the encoded body is over ``MAX_FRAME_BYTES``.
    """
    body: bytes = msgpack.packb(frame, use_bin_type=True)
    if len(body) > MAX_FRAME_BYTES:
        raise LocalProtocolError(f"frame of {len(body)} bytes, limit {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Turns any split of the byte stream back into frames; holds at most one frame plus one read."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[Frame]:
        """Add *data* and yield every frame it completes, in order.

        Raises:
            RemoteProtocolError: a length over the bound, or a body that is not one msgpack map with
                text keys. The reader is unusable afterwards.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            # Before the body arrives: a lying length must cost four bytes, not four gigabytes.
            if length > MAX_FRAME_BYTES:
                raise RemoteProtocolError(f"frame of {length} bytes, limit {MAX_FRAME_BYTES}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            yield decode_map(body)

    def at_boundary(self) -> bool:
        """Whether an end of file here would fall between two frames."""
        return not self._buffer


def decode_map(body: bytes) -> Frame:
    """Decode one msgpack map with text keys.

    Raises:
        RemoteProtocolError: anything else, trailing bytes included.
    """
    try:
        value = msgpack.unpackb(body, raw=False, strict_map_key=True)
    except (ValueError, msgpack.UnpackException) as exc:
        raise RemoteProtocolError(f"not one msgpack value: {exc}") from exc
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise RemoteProtocolError(f"expected a map with text keys, got {type(value).__name__}")
    return value
