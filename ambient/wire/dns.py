"""DNS messages, as much as a cluster's name servers need: one question, A, AAAA and CNAME answers.

Floor 1: sans-IO. Which name has which address is decided in ``ambient.redirect.names`` (the node's name
server) and ``ztunnel.dns_plan`` (the one in a captured pod).

Source: RFC 1035 section 4, RFC 3596 (AAAA), RFC 6891 (EDNS, of which only the size is used). An answer that
is over that size by UDP is cut and says so (TC), and the resolver comes again by TCP.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import ip_address

from ambient.errors import RemoteProtocolError

TYPE_A = 1
TYPE_CNAME = 5
TYPE_AAAA = 28
TYPE_OPT = 41
CLASS_IN = 1
# RFC 1035 sections 2.3.4 and 4.2.
MAX_NAME_BYTES = 255
MAX_LABEL_BYTES = 63
MAX_UDP_BYTES = 512
MAX_TCP_BYTES = 65535
# What fits one packet on every path (DNS flag day 2020, and ztunnel's resolver).
MAX_EDNS_BYTES = 1232

_HEADER = struct.Struct("!HHHHHH")
_QUESTION_TAIL = struct.Struct("!HH")
_RECORD = struct.Struct("!HHHIH")
_QR, _AA, _TC, _RD, _RA = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
# A pointer to byte 12, where the question's name stands (RFC 1035 section 4.1.4).
_POINTER = 0xC000
_NAME_POINTER = _POINTER | 12
# The root's name, then type and size: the rest of the record is nothing to us.
_OPT = struct.Struct("!BHHIH")


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
        kind_class: ``CLASS_IN``, or another that nobody uses.
        edns_bytes: What the resolver takes by UDP, as it says; 0 if it does not speak EDNS.
    """

    identifier: int
    name: str
    kind: int
    question: bytes
    opcode: int = 0
    recursion_desired: bool = False
    kind_class: int = CLASS_IN
    edns_bytes: int = 0

    @property
    def udp_room(self) -> int:
        """How long an answer by UDP may be."""
        return max(MAX_UDP_BYTES, min(self.edns_bytes, MAX_EDNS_BYTES))


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say: a code, and addresses of the asked family (possibly none).

    Attributes:
        alias_of: The name that has the addresses, if it is not the one that was asked.
    """

    rcode: Rcode
    addresses: tuple[str, ...] = ()
    alias_of: str = ""


def parse_query(data: bytes) -> Query:
    """Read a query with exactly one question.

    Raises:
        RemoteProtocolError: not a query, not one question, a name that breaks RFC 1035. A compressed name
            is refused too: in a question there is nothing it could point to.
    """
    if len(data) < _HEADER.size:
        raise RemoteProtocolError(f"DNS message of {len(data)} bytes")
    identifier, flags, questions, answers, authority, additional = _HEADER.unpack_from(data)
    if flags & _QR or questions != 1:
        raise RemoteProtocolError(
            f"not a query with one question (flags {flags:#06x}, {questions} questions)"
        )
    name, end = _name(data, _HEADER.size)
    if end + _QUESTION_TAIL.size > len(data):
        raise RemoteProtocolError("DNS question cut short")
    kind, kind_class = _QUESTION_TAIL.unpack_from(data, end)
    end += _QUESTION_TAIL.size
    question = bytes(data[_HEADER.size : end])
    size = _edns_bytes(data, end) if additional and not answers and not authority else 0
    opcode = (flags & _OPCODE) >> 11
    return Query(identifier, name, kind, question, opcode, bool(flags & _RD), kind_class, size)


def _edns_bytes(data: bytes, offset: int) -> int:
    """What the OPT record at *offset* says; resolvers put it first, and one elsewhere is not looked for."""
    if offset + _OPT.size > len(data):
        return 0
    root, kind, size, _extended, _length = _OPT.unpack_from(data, offset)
    return max(size, MAX_UDP_BYTES) if root == 0 and kind == TYPE_OPT else 0


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
        max_bytes: ``query.udp_room`` or ``MAX_TCP_BYTES``.
    """
    records = _records(query, answer, ttl)
    edns = _OPT.pack(0, TYPE_OPT, MAX_EDNS_BYTES, 0, 0) if query.edns_bytes else b""
    room = max_bytes - _HEADER.size - len(query.question) - len(edns)
    kept: list[bytes] = []
    for record in records:
        room -= len(record)
        if room < 0:
            break
        kept.append(record)
    flags = _QR | _AA | _RA | (query.opcode << 11) | int(answer.rcode)
    flags |= _RD if query.recursion_desired else 0
    flags |= _TC if len(kept) < len(records) else 0
    head = _HEADER.pack(query.identifier, flags, 1, len(kept), 0, int(bool(edns)))
    return head + query.question + b"".join(kept) + edns


def _records(query: Query, answer: Answer, ttl: int) -> list[bytes]:
    owner = _NAME_POINTER
    records = []
    if answer.alias_of:
        target = encode_name(answer.alias_of)
        records.append(_RECORD.pack(owner, TYPE_CNAME, CLASS_IN, ttl, len(target)) + target)
        # The addresses belong to the target, whose name stands in the record just made.
        owner = _POINTER | (_HEADER.size + len(query.question) + _RECORD.size)
    for address in answer.addresses:
        packed = ip_address(address).packed
        records.append(_RECORD.pack(owner, query.kind, CLASS_IN, ttl, len(packed)) + packed)
    return records


def encode_name(name: str) -> bytes:
    """A name of known good labels, uncompressed."""
    labels = [label.encode("latin-1") for label in name.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def with_identifier(message: bytes, identifier: int) -> bytes:
    """The same message under another number, for asking and answering in somebody's stead."""
    return struct.pack("!H", identifier) + message[2:]


def is_answer_to(reply: bytes, sent: bytes) -> bool:
    """Whether *reply* may be believed as the answer to *sent*: its number, its question, and a response.

    The question may come back in another case only if the server lost it, and then it is not believed.
    """
    if len(reply) < _HEADER.size or reply[:2] != sent[:2] or not reply[2] & (_QR >> 8):
        return False
    if int.from_bytes(reply[4:6], "big") == 0:
        # Some servers leave the question out of a refusal; it has no records that could mislead.
        return reply[3] & 0x0F != Rcode.NOERROR
    _name_there, end = _name(sent, _HEADER.size)
    end += _QUESTION_TAIL.size
    return reply[_HEADER.size : end] == sent[_HEADER.size : end]


def encode_query(identifier: int, name: str, kind: int, *, edns_bytes: int = 0) -> bytes:
    """A query for *name*, recursion desired; for tests and probes."""
    question = encode_name(name) + _QUESTION_TAIL.pack(kind, CLASS_IN)
    head = _HEADER.pack(identifier, _RD, 1, 0, 0, int(bool(edns_bytes)))
    return head + question + (_OPT.pack(0, TYPE_OPT, edns_bytes, 0, 0) if edns_bytes else b"")
