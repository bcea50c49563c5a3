"""Netlink messages: headers, attributes, answers.

Floor 1: sans-IO. What a message means is in ``rtnetlink``, ``nft`` and ``sockdiag``; who carries it
is ``ambient.engine.netlink``.

Source: Linux ``include/uapi/linux/netlink.h``; every number here is from that file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from ambient.errors import RemoteProtocolError

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF

AF_INET = 2
AF_INET6 = 10

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message; ``body`` is everything behind the 16-byte header."""

    kind: int
    flags: int
    body: bytes
    sequence: int = 0


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string attribute."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A 32-bit attribute in host order, as rtnetlink wants it."""
    return attribute(kind, struct.pack("=I", value))


def encode(message: Message, sequence: int) -> bytes:
    """The message as it goes to the kernel, padded to four bytes."""
    length = _HEADER.size + len(message.body)
    header = _HEADER.pack(length, message.kind, message.flags | NLM_F_REQUEST, sequence, 0)
    return header + message.body + bytes(-length % 4)


def decode(data: bytes) -> Iterator[Message]:
    """Every message of one datagram.

    Raises:
        RemoteProtocolError: a length that does not fit the datagram.
    """
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _pid = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            raise RemoteProtocolError(f"netlink message of {length} bytes in {len(data) - offset}")
        yield Message(kind, flags, data[offset + _HEADER.size : offset + length], sequence)
        offset += length + (-length % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """Attribute number -> value; a repeated number keeps its last value."""
    return dict(attribute_list(data))


def attribute_list(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Every attribute in order, nesting flags taken off.

    Raises:
        RemoteProtocolError: a length that does not fit.
    """
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            raise RemoteProtocolError(f"netlink attribute of {length} bytes in {len(data) - offset}")
        yield kind & _NLA_TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + (-length % 4)


def errno_of(message: Message) -> int:
    """The positive errno of an NLMSG_ERROR answer; 0 is the kernel's acknowledgement."""
    (code,) = struct.unpack_from("=i", message.body)
    return -int(code)
