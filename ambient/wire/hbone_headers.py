"""Header blocks of CONNECT: encoding, bounded decoding, and what makes a request malformed.

Floor 1: sans-IO. Encoding is literal and stateless (RFC 7541 6.2.2), so that nothing we send depends
on the peer's table; decoding is ``hpack``'s, under bounds on the *decoded* size, which is what
CVE-2026-47774 was about. Source: RFC 9113 8.2, 8.3 and 8.5.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, NamedTuple, NewType, TypeAlias

from ambient.errors import LocalProtocolError
from ambient.wire.hpack_literal import read_literals

if TYPE_CHECKING:
    import hpack

Headers: TypeAlias = tuple[tuple[str, str], ...]
RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

# What a request may decode to, RFC 9113 6.5.2's way of counting (32 bytes beside each field), before it
# is answered 431; Istio's client advertises the same 16 KiB.
MAX_HEADER_LIST_BYTES = 16 * 1024
# Beyond this the decoder stops and the connection ends: it could not stay in step any more.
DECODER_LIST_BYTES = 64 * 1024
# The compressed block over all its frames, and how many CONTINUATIONs may carry it. Picked, not measured.
MAX_BLOCK_BYTES = 32 * 1024
MAX_CONTINUATIONS = 8
FIELD_OVERHEAD_BYTES = 32
# Ours always fit one frame of the smallest size a peer may ask for.
MAX_SENT_BLOCK_BYTES = 16_000

# Field names whose encoding is kept: ours are three. Picked, not measured.
REMEMBERED_NAMES = 64
# How a request begins is remembered if that is short, and of so many targets for one connection; and how
# many fields at its end differ between two to the same target (``forwarded``, ``traceparent``).
MAX_REMEMBERED_BYTES = 1024
MAX_REMEMBERED_REQUESTS = 4
VARYING_FIELDS = 2
# The usual ones, and what they add to a list at the most.
_ENDING = re.compile(
    rb"\x00\x09forwarded([\x00-\x7e])((?! )[ -~]*(?<! ))\x00\x0btraceparent([\x00-\x7e])((?! )[ -~]*(?<! ))"
)
ENDING_LIST_BYTES = 512
# Answers whose block is kept: there is one for each pod of the node. Picked, not measured.
REMEMBERED_ANSWERS = 256
_BLANKS = (b" ", b"\t")
_BYTES = tuple(bytes((value,)) for value in range(127))

# RFC 9113 8.2.1: lower case, no controls, no space; and values without CR, LF, NUL or edge blanks.
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_STATUS = re.compile(rb"[1-9][0-9][0-9]")
_BAD_VALUE = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]\Z")
_CONNECTION_FIELDS = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_RESPONSE_PSEUDO = frozenset((b":status",))
_REQUEST_PSEUDO = frozenset((b":method", b":authority", b":scheme", b":path", b":protocol"))


class MalformedError(Exception):
    """A header block that RFC 9113 calls malformed: an error of its stream. Never leaves floor 1."""


class CompressionBrokenError(Exception):
    """A block that cannot be decompressed, or only at a price; ends the connection. Never leaves floor 1."""

    def __init__(self, message: str, *, oversized: bool = False) -> None:
        super().__init__(message)
        self.oversized = oversized


class Request(NamedTuple):
    """A well-formed request, of any method.

    Attributes:
        authority: Not empty if the method is CONNECT.
        protocol: ``:protocol`` of an extended CONNECT (RFC 8441), or "".
        headers: Without pseudo-headers.
    """

    method: str
    authority: str
    protocol: str
    headers: Headers


class HeaderDecoder:
    """Decompresses the blocks of one direction of one connection."""

    def __init__(self) -> None:
        # None until a block needs it.
        self._decoder: hpack.Decoder | None = None

    def decode(self, block: bytes) -> RawHeaders:
        """Decode one block.

        Raises:
            CompressionBrokenError: the connection cannot go on.
        """
        simple = read_literals(block)
        return simple if simple is not None else self._decompress(block)

    def _decompress(self, block: bytes) -> RawHeaders:
        # Where all peers are ours nobody compresses, and 0.7 MB of every process are not needed.
        import hpack

        decoder = self._decoder
        if decoder is None:
            decoder = self._decoder = hpack.Decoder(max_header_list_size=DECODER_LIST_BYTES)
        try:
            return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
        except hpack.OversizedHeaderListError as exc:
            raise CompressionBrokenError(str(exc), oversized=True) from exc
        except hpack.HPACKError as exc:
            raise CompressionBrokenError(str(exc)) from exc


class _Known(NamedTuple):
    """How a block began: whole fields, what they say, and their size as a list."""

    begin: bytes
    request: Request
    size: int


class RequestReader:
    """Reads CONNECTs that begin as an earlier one of the connection did, as those to one target do.

    It gives what ``HeaderDecoder`` and ``read_request`` would, and reads no block on which another block
    could depend; whatever is not the usual case is theirs.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: list[_Known] = []

    def read(self, block: bytes) -> Request | None:
        """The request in *block* if it is well-formed and not too large; None: ask the decoder."""
        for known in self._known:
            if block.startswith(known.begin):
                return _as_before(known, block) or _completed(known, block)
        return None

    def learn(self, block: bytes, request: Request) -> None:
        """*request* is what the decoder made of *block*: more may begin so."""
        ends: list[int] = []
        fields = read_literals(block, ends)
        if fields is None or len(fields) <= VARYING_FIELDS or request.method != "CONNECT" or request.protocol:
            return
        kept = fields[:-VARYING_FIELDS]
        pseudo = sum(name[:1] == b":" for name, _ in fields)
        end = ends[len(kept) - 1]
        if len(kept) < pseudo or end > MAX_REMEMBERED_BYTES:
            return
        size = list_bytes(kept)
        if size > MAX_HEADER_LIST_BYTES - ENDING_LIST_BYTES:
            return
        known = request._replace(headers=request.headers[: len(kept) - pseudo])
        del self._known[MAX_REMEMBERED_REQUESTS - 1 :]
        self._known.insert(0, _Known(block[:end], known, size))


def _as_before(known: _Known, block: bytes) -> Request | None:
    """``_completed`` of a block that ends as our own do: with two literals of up to 126 ordinary bytes."""
    found = _ENDING.fullmatch(block, len(known.begin))
    if found is None:
        return None
    size, one, other_size, two = found.groups()
    if size[0] != len(one) or other_size[0] != len(two):
        return None
    request = known.request
    headers = (*request.headers, ("forwarded", one.decode()), ("traceparent", two.decode()))
    return Request(request.method, request.authority, "", headers)


def _completed(known: _Known, block: bytes) -> Request | None:
    """The request that *block* is, which begins as *known*."""
    request, size = known.request, known.size
    fields = read_literals(block[len(known.begin) :])
    if fields is None:
        return None
    headers = request.headers
    for raw_name, value in fields:
        name, text = _field(raw_name), value.decode("latin-1")
        if not name or name == "te" or not text.isprintable() or text[:1] == " " or text[-1:] == " ":
            return None
        size += len(raw_name) + len(value) + FIELD_OVERHEAD_BYTES
        headers += ((name, text),)
    if size > MAX_HEADER_LIST_BYTES:
        return None
    return Request(request.method, request.authority, "", headers)


def is_stateless(block: bytes) -> bool:
    """Whether *block* means the same whatever came before it, and changes nothing for what comes after it."""
    return read_literals(block) is not None


def list_bytes(headers: RawHeaders) -> int:
    """The size of a decoded list as SETTINGS_MAX_HEADER_LIST_SIZE counts it."""
    return sum(len(name) + len(value) + FIELD_OVERHEAD_BYTES for name, value in headers)


def content_length(values: list[bytes]) -> int | None:
    """The length that these content-length fields declare; None: no field, -1: no length (RFC 9110 8.6)."""
    if not values:
        return None
    if len(set(values)) > 1 or not _LENGTH.fullmatch(values[0]):
        return -1
    return int(values[0])


def read_request(headers: RawHeaders) -> Request:
    """Judge a request's block.

    Raises:
        MalformedError: RFC 9113 8.1.1 calls for a stream error.
    """
    pseudo, rest = _split(headers, _REQUEST_PSEUDO)
    method = pseudo.get(b":method", b"")
    if not method:
        raise MalformedError("no :method")
    if method == b"CONNECT" and b":protocol" not in pseudo:
        if b":scheme" in pseudo or b":path" in pseudo:
            raise MalformedError("CONNECT with :scheme or :path")
        if not pseudo.get(b":authority"):
            raise MalformedError("CONNECT without :authority")
    elif not pseudo.get(b":scheme") or not pseudo.get(b":path"):
        raise MalformedError("no :scheme or no :path")
    return Request(
        method.decode("latin-1"),
        pseudo.get(b":authority", b"").decode("latin-1"),
        pseudo.get(b":protocol", b"").decode("latin-1"),
        _text(rest),
    )


def read_response(headers: RawHeaders) -> tuple[int, Headers]:
    """Judge an answer's block; returns (status, headers without pseudo-headers).

    Raises:
        MalformedError: RFC 9113 8.1.1 calls for a stream error.
    """
    pseudo, rest = _split(headers, _RESPONSE_PSEUDO)
    status = pseudo.get(b":status", b"")
    if not _STATUS.fullmatch(status) or status == b"101":
        raise MalformedError(f"not a status: {status!r}")
    return int(status), _text(rest)


def encode_request(authority: str, headers: Headers) -> bytes:
    """The block of a CONNECT to *authority*.

    Raises:
        LocalProtocolError: a name or value that cannot be sent, or the block is too large.
    """
    if not authority:
        raise LocalProtocolError("CONNECT without an authority")
    # 0x02 and 0x01: literal without indexing, names :method and :authority of the static table.
    return _bounded(b"\x02\x07CONNECT" + b"\x01" + _string(_value(authority)) + _fields(headers))


# The block of a CONNECT, ready to be sent on any connection.
EncodedRequest = NewType("EncodedRequest", bytes)


class RequestEncoder:
    """``encode_request`` for many CONNECTs that differ in the values of their last two fields only.

    Args:
        fixed: The fields that are the same in all of them; they come first.
        names: Of the others, in order.

    Raises:
        LocalProtocolError: as ``encode_request``.
    """

    __slots__ = ("_between", "_head")

    def __init__(self, authority: str, fixed: Headers, names: tuple[str, str]) -> None:
        # As text, of which Latin-1 makes the bytes: so a block is put together and encoded in two steps.
        self._head = (encode_request(authority, fixed) + _field_name(names[0])).decode("latin-1")
        self._between = _field_name(names[1]).decode("latin-1")

    def encode(self, first: str, second: str) -> EncodedRequest:
        """The block with these values under the names; ``raises`` as ``encode_request``."""
        both = first + second
        if (
            both.isascii()
            and both.isprintable()
            and len(first) < 127
            and len(second) < 127
            and " " not in (first[:1], first[-1:], second[:1], second[-1:])
        ):
            size, other = chr(len(first)), chr(len(second))
            block = f"{self._head}{size}{first}{self._between}{other}{second}".encode("latin-1")
        else:
            values = [_string(_value(text)).decode("latin-1") for text in (first, second)]
            block = f"{self._head}{values[0]}{self._between}{values[1]}".encode("latin-1")
        if len(block) > MAX_SENT_BLOCK_BYTES:
            _bounded(block)
        return EncodedRequest(block)


@functools.lru_cache(maxsize=REMEMBERED_ANSWERS)
def encode_response(status: int, headers: Headers) -> bytes:
    """The block of an answer; ``raises`` as ``encode_request``."""
    # 0x88 is ":status 200" of the static table, 0x08 its name alone.
    head = b"\x88" if status == 200 else b"\x08" + _string(b"%d" % status)
    return _bounded(head + _fields(headers))


def _split(headers: RawHeaders, allowed: frozenset[bytes]) -> tuple[dict[bytes, bytes], RawHeaders]:
    pseudo: dict[bytes, bytes] = {}
    rest: RawHeaders = []
    for name, value in headers:
        if (
            len(value.translate(None, b"\x00\r\n")) != len(value)
            or value[:1] in _BLANKS
            or value[-1:] in _BLANKS
        ):
            raise MalformedError(f"bad value of {name!r}")
        if name[:1] != b":":
            if not _field(name):
                raise MalformedError(f"bad or connection-specific field {name!r}")
            if name == b"te" and value != b"trailers":
                raise MalformedError(f"connection-specific field {name!r}")
            rest.append((name, value))
        elif rest or name in pseudo or name not in allowed:
            raise MalformedError(f"{name!r} is late, doubled or unknown")
        else:
            pseudo[name] = value
    return pseudo, rest


@functools.lru_cache(maxsize=REMEMBERED_NAMES)
def _field(name: bytes) -> str:
    """The name of a field as text; "" if it is none, or one of the connection's."""
    good = name not in _CONNECTION_FIELDS and _NAME.fullmatch(name) is not None
    return name.decode("latin-1") if good else ""


def _text(headers: RawHeaders) -> Headers:
    # Latin-1 cannot fail and keeps every byte; whoever needs more decodes again.
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers)


def _fields(headers: Headers) -> bytes:
    parts = []
    for name, value in headers:
        parts.append(_field_name(name))
        parts.append(_string(_value(value)))
    return b"".join(parts)


@functools.lru_cache(maxsize=REMEMBERED_NAMES)
def _field_name(name: str) -> bytes:
    """The beginning of a literal without indexing, a new name."""
    raw = name.encode("latin-1", "replace")
    if not _NAME.fullmatch(raw):
        raise LocalProtocolError(f"bad field name {name!r}")
    return b"\x00" + _string(raw)


def _value(text: str) -> bytes:
    raw = text.encode("latin-1", "replace")
    if text.isascii() and text.isprintable() and text[:1] != " " and text[-1:] != " ":
        return raw
    if _BAD_VALUE.search(raw):
        raise LocalProtocolError(f"value cannot be sent: {text!r}")
    return raw


def _string(raw: bytes) -> bytes:
    """A string literal without Huffman coding: RFC 7541 5.2, its length with a 7-bit prefix (5.1)."""
    size = len(raw)
    if size < 127:
        return _BYTES[size] + raw
    head = bytearray((127,))
    size -= 127
    while size > 127:
        head.append(size & 127 | 128)
        size >>= 7
    head.append(size)
    return bytes(head) + raw


def _bounded(block: bytes) -> bytes:
    if len(block) > MAX_SENT_BLOCK_BYTES:
        raise LocalProtocolError(f"header block of {len(block)} bytes, limit {MAX_SENT_BLOCK_BYTES}")
    return block
