"""Netlink, the kernel's message format for network settings: headers, attributes, acknowledgements.

Floor 1: sans-IO. What the messages mean stands in the modules built on this one: ``netlink_route``
(links, addresses, routes), ``netlink_diag`` (sockets), ``nft`` (rules). The socket is
``ambient.engine.netlink``.

Source: netlink(7), linux/netlink.h. Numbers are in the machine's byte order unless a module says otherwise.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ambient.errors import RemoteProtocolError

# Protocols of socket(AF_NETLINK, SOCK_RAW, ...).
NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12

# Address families, as Linux numbers them; floor 1 imports no socket.
AF_UNSPEC = 0
AF_INET = 2
AF_INET6 = 10

NLM_F_REQUEST = 0x1
NLM_F_MULTI = 0x2
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_DUMP = 0x300
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
# On an acknowledgement: the request is not repeated in it; attributes follow.
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200

NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1

NLA_F_NESTED = 0x8000
NLA_TYPE_MASK = 0x3FFF

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERRNO = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Request:
    """One message to the kernel.

    Attributes:
        what: The act in words, for the error message: ``"add link eth0"``.
        flags: NLM_F_* beyond REQUEST, which is always set.
    """

    kind: int
    body: bytes
    what: str
    flags: int = NLM_F_ACK


@dataclass(frozen=True, slots=True)
class Message:
    """One message from the kernel."""

    kind: int
    flags: int
    sequence: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Ack:
    """The kernel's answer to one request: *errno* 0 means done, *text* is its own explanation."""

    sequence: int
    errno: int
    text: str = ""


def encode(request: Request, sequence: int) -> bytes:
    """One request as it goes to the kernel, padded so that another may follow."""
    length = _HEADER.size + len(request.body)
    header = _HEADER.pack(length, request.kind, request.flags | NLM_F_REQUEST, sequence, 0)
    return header + request.body + bytes(-length % 4)


def encode_all(requests: Iterable[Request], first_sequence: int = 1) -> bytes:
    """Requests with consecutive sequence numbers, as one datagram."""
    return b"".join(encode(request, first_sequence + index) for index, request in enumerate(requests))


def decode(data: bytes) -> Iterator[Message]:
    """The messages of one datagram.

    Raises:
        RemoteProtocolError: a length does not fit.
    """
    offset = 0
    while offset < len(data):
        if len(data) - offset < _HEADER.size:
            raise RemoteProtocolError("netlink datagram ends within a header")
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            raise RemoteProtocolError(f"netlink message of {length} bytes in a datagram of {len(data)}")
        yield Message(kind, flags, sequence, data[offset + _HEADER.size : offset + length])
        offset += length + (-length % 4)


def decode_ack(message: Message) -> Ack:
    """What an NLMSG_ERROR or NLMSG_DONE message says; the error number is positive."""
    if len(message.body) < _ERRNO.size:
        return Ack(message.sequence, 0)
    code = -_ERRNO.unpack_from(message.body)[0]
    return Ack(message.sequence, code, _explanation(message) if message.kind == NLMSG_ERROR else "")


def _explanation(message: Message) -> str:
    """The kernel's extended acknowledgement text, "" if it gave none."""
    if not message.flags & NLM_F_ACK_TLVS or len(message.body) < _ERRNO.size + _HEADER.size:
        return ""
    (length,) = struct.unpack_from("=I", message.body, _ERRNO.size)
    skipped = _HEADER.size if message.flags & NLM_F_CAPPED else length + (-length % 4)
    found = attributes(message.body[_ERRNO.size + skipped :])
    return text(found.get(NLMSGERR_ATTR_MSG, b""))


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def nested(kind: int, *members: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(members))


def string(kind: int, value: str) -> bytes:
    """A zero-terminated text attribute."""
    return attribute(kind, value.encode() + b"\0")


def u8(kind: int, value: int) -> bytes:
    """One byte."""
    return attribute(kind, bytes((value,)))


def u32(kind: int, value: int) -> bytes:
    """Four bytes in the machine's order."""
    return attribute(kind, struct.pack("=I", value))


def be32(kind: int, value: int) -> bytes:
    """Four bytes in network order, as nf_tables wants its numbers."""
    return attribute(kind, struct.pack("!I", value))


def attribute_list(data: bytes) -> list[tuple[int, bytes]]:
    """Attributes in order, flags removed from their numbers; lists repeat one number.

    Raises:
        RemoteProtocolError: a length does not fit.
    """
    found = []
    offset = 0
    while len(data) - offset >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        left = len(data) - offset
        if not _ATTRIBUTE.size <= length <= left:
            raise RemoteProtocolError(f"netlink attribute of {length} bytes where {left} are left")
        found.append((kind & NLA_TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]))
        offset += length + (-length % 4)
    return found


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by number; of a repeated one the last."""
    return dict(attribute_list(data))


def text(value: bytes) -> str:
    """A zero-terminated text, read leniently: it is only ever shown or compared."""
    return value.split(b"\0", 1)[0].decode(errors="replace")


def number(value: bytes | None) -> int:
    """An attribute's unsigned number in the machine's order, of any width; 0 if there is none."""
    return int.from_bytes(value or b"", sys.byteorder)
