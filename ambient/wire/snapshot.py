"""The mesh as a file: what a ztunnel knew, for the one that follows it while control is away.

Floor 1: sans-IO. A line that names the form and its version, frames of ``ambient.wire.frames`` with a slice
each of workloads, services or policies, and the SHA-256 of all that. No key and no token is ever in it.
Nothing of a file is believed before its sum is: half a policy set would be worse than none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from ambient.errors import RemoteProtocolError
from ambient.model.mesh import Change
from ambient.model.policy import Policy
from ambient.model.service import Service
from ambient.model.workload import Workload
from ambient.wire.frames import FrameReader, encode
from ambient.wire.values import from_wire, to_wire

T = TypeVar("T")

VERSION = 1
_MAGIC = b"ambient mesh snapshot "
_FIRST_LINE = _MAGIC + str(VERSION).encode() + b"\n"
_SUM_BYTES = hashlib.sha256().digest_size

# Resources encoded at once, 10 to 20 us each: a slice takes some 0.25 ms, and the bytes of connections are
# moved in between.
SLICE_RESOURCES = 20


def pieces(change: Change) -> Iterator[bytes]:
    """The file, piece by piece: whoever writes it may do other things in between.

    Args:
        change: A whole snapshot; its values do not change, whatever becomes of the mesh.
    """
    total = hashlib.sha256()
    for piece in _unsummed(change):
        total.update(piece)
        yield piece
    yield total.digest()


def _unsummed(change: Change) -> Iterator[bytes]:
    yield _FIRST_LINE
    groups: tuple[tuple[str, Sequence[Any]], ...] = (
        ("services", change.services),
        ("workloads", change.workloads),
        ("policies", change.policies),
    )
    for name, values in groups:
        for start in range(0, len(values), SLICE_RESOURCES):
            yield encode({name: [to_wire(value) for value in values[start : start + SLICE_RESOURCES]]})


def read(data: bytes) -> Change:
    """The snapshot in the file *data*.

    Raises:
        RemoteProtocolError: it is no snapshot, of another version, or not whole.
    """
    if not data.startswith(_MAGIC):
        raise RemoteProtocolError("not a mesh snapshot")
    if not data.startswith(_FIRST_LINE):
        raise RemoteProtocolError("a mesh snapshot of another version")
    body, total = data[:-_SUM_BYTES], data[-_SUM_BYTES:]
    if hashlib.sha256(body).digest() != total:
        raise RemoteProtocolError("its checksum is wrong: cut short or changed")
    reader = FrameReader()
    frames = list(reader.feed(body[len(_FIRST_LINE) :]))
    if not reader.at_boundary():
        raise RemoteProtocolError("it ends within a frame")
    return Change(
        services=_values(Service, frames, "services"),
        workloads=_values(Workload, frames, "workloads"),
        policies=_values(Policy, frames, "policies"),
        snapshot=True,
    )


def _values(cls: type[T], frames: list[dict[str, Any]], name: str) -> tuple[T, ...]:
    found = [frame[name] for frame in frames if name in frame]
    if not all(isinstance(part, list) for part in found):
        raise RemoteProtocolError(f"{name} is not a list")
    return tuple(from_wire(cls, value) for part in found for value in part)
