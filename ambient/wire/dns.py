"""DNS messages, as much as a cluster's name server needs: one question, A and AAAA answers.

Floor 1: sans-IO. Which name has which address is decided in ``ambient.redirect.names``.

Source: RFC 1035 section 4, RFC 3596 (AAAA). EDNS is not read: an answer over 512 bytes by UDP is cut and
says so (TC), and the resolver comes again by TCP.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address

from ambient.errors import RemoteProtocolError

TYPE_A = 1
TYPE_AAAA = 28
CLASS_IN = 1
# RFC 1035 sections 2.3.4 and 4.2.
MAX_NAME_BYTES = 255
MAX_LABEL_BYTES = 63
MAX_UDP_BYTES = 512
MAX_TCP_BYTES = 65535

_HEADER = struct.Struct("!HHHHHH")
_QUESTION_TAIL = struct.Struct("!HH")
_RECORD = struct.Struct("!HHHIH")
_QR, _AA, _TC, _RD, _RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
# A pointer to byte 12, where the question's name stands (RFC 1035 section 4.1.4).
_NAME_POINTER = 0xC00C


class Rcode(IntEnum):
    """Answer codes of RFC 1035 section 4.1.1."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4


@dataclass(frozen=True, slots=True)
class Query:
    """One question.

    Attributes:
        name: Lower case, without the last dot: ``"details.bookinfo.svc.cluster.local"``.
        kind: ``TYPE_A``, ``TYPE_AAAA`` or any other number.
        question: The question section as it came, to be sent back unchanged.
    """

    identifier: int
    name: str
    kind: int
    question: bytes
    opcode: int = 0
    recursion_desired: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say: a code, and addresses of the asked family (possibly none)."""

    rcode: Rcode
    addresses: tuple[str, ...] = ()


def parse_query(data: bytes) -> Query:
    """Read a query with exactly one question.

    Raises:
        RemoteProtocolError: not a query, not one question, a name that breaks RFC 1035. A compressed name
            is refused too: in a question there is nothing it could point to.
    """
    if len(data) < _HEADER.size:
        raise RemoteProtocolError(f"DNS message of {len(data)} bytes")
    identifier, flags, questions, _answers, _authority, _additional = _HEADER.unpack_from(data)
    if flags & _QR or questions != 1:
        raise RemoteProtocolError(
            f"not a query with one question (flags {flags:#06x}, {questions} questions)"
        )
    name, end = _name(data, _HEADER.size)
    if end + _QUESTION_TAIL.size > len(data):
        raise RemoteProtocolError("DNS question cut short")
    kind, _class = _QUESTION_TAIL.unpack_from(data, end)
    question = bytes(data[_HEADER.size : end + _QUESTION_TAIL.size])
    return Query(identifier, name, kind, question, (flags & _OPCODE) >> 11, bool(flags & _RD))


def _name(data: bytes, offset: int) -> tuple[str, int]:
    labels: list[str] = []
    start = offset
    while True:
        if offset >= len(data):
            raise RemoteProtocolError("DNS name cut short")
        length = data[offset]
        if length == 0:
            return ".".join(labels), offset + 1
        label = data[offset + 1 : offset + 1 + length]
        if length > MAX_LABEL_BYTES or len(label) != length or offset - start + length > MAX_NAME_BYTES:
            raise RemoteProtocolError("DNS label or name over its bound")
        # latin-1 keeps every byte apart, so that no two names on the wire become one here.
        labels.append(label.decode("latin-1").lower())
        offset += 1 + length


def encode_answer(query: Query, answer: Answer, *, ttl: int, max_bytes: int) -> bytes:
    """The response to *query*; records that do not fit *max_bytes* are left out and TC is set.

    Args:
        ttl: Seconds a resolver may keep it.
        max_bytes: ``MAX_UDP_BYTES`` or ``MAX_TCP_BYTES``.
    """
    records = [_record(query.kind, address, ttl) for address in answer.addresses]
    room = max_bytes - _HEADER.size - len(query.question)
    size = len(records[0]) if records else 1
    kept = records[: room // size]
    flags = _QR | _AA | _RA | (query.opcode << 11) | int(answer.rcode)
    flags |= _RD if query.recursion_desired else 0
    flags |= _TC if len(kept) < len(records) else 0
    return _HEADER.pack(query.identifier, flags, 1, len(kept), 0, 0) + query.question + b"".join(kept)


def _record(kind: int, address: str, ttl: int) -> bytes:
    packed = ip_address(address).packed
    return _RECORD.pack(_NAME_POINTER, kind, CLASS_IN, ttl, len(packed)) + packed


def encode_query(identifier: int, name: str, kind: int) -> bytes:
    """A query for *name*, recursion desired; for tests and probes."""
    labels = [label.encode("latin-1") for label in name.split(".") if label]
    wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    return _HEADER.pack(identifier, _RD, 1, 0, 0, 0) + wire + _QUESTION_TAIL.pack(kind, CLASS_IN)
