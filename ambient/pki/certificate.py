"""What we ask of a certificate: who and what it is for, its key, its number and its times.

Floor 1: a strict reading of bytes. Whether a chain leads to a root is OpenSSL's to say; this is the second
reading, of the fields on which OpenSSL is more generous than SPIFFE allows. ``cryptography`` reads them as
well (it is the judge in the tests), but takes 3 MB in every process that imports it.

Source: RFC 5280 sections 4.1 and 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache

from ambient.errors import RemoteProtocolError
from ambient.pki import der
from ambient.pki.der import Reader

# Contents of OBJECT IDENTIFIER: id-ce 15, 17, 19 and 37; id-kp 1 and 2.
KEY_USAGE, SUBJECT_NAMES = bytes.fromhex("551d0f"), bytes.fromhex("551d11")
BASIC_CONSTRAINTS, EXTENDED_USE = bytes.fromhex("551d13"), bytes.fromhex("551d25")
SERVER_USE, CLIENT_USE = bytes.fromhex("2b06010505070301"), bytes.fromhex("2b06010505070302")

# Versions 2 and 3; version 1 is the absent one.
_VERSIONS = (b"\x02\x01\x01", b"\x02\x01\x02")
# KeyUsage, bit 5, of the first byte after the count of unused bits.
_KEY_CERT_SIGN = 0x04
# GeneralName: URI is [6]. x400Address [3] and ediPartyName [5] belong to no name that we would read beside.
_URI = 0x86
_NAME_TAGS = frozenset((0xA0, 0x81, 0x82, 0xA4, _URI, 0x87, 0x88))
# Peers come back with the same leaf: one reading takes 70 us, a known one 1 us. At most 0.2 MB; picked.
_KNOWN = 128
# Dates of two digits are of 1950 to 2049.
_PIVOT = b"50"


@dataclass(frozen=True, slots=True)
class Certificate:
    """Fields of one certificate.

    Attributes:
        not_before: Unix seconds.
        not_after: Unix seconds.
        has_subject: Whether its subject is more than an empty name.
        public_key: SubjectPublicKeyInfo, DER.
        is_authority: It says that it may sign others, in either of two ways.
        uses: Contents of the extended key usage; None if there is no such extension.
        uris: Of the alternative names; None if it has no such names at all.
        names_are_critical: Whether who does not understand the alternative names must refuse.
    """

    serial: int
    not_before: float
    not_after: float
    has_subject: bool
    public_key: bytes = field(repr=False)
    is_authority: bool
    uses: tuple[bytes, ...] | None
    uris: tuple[str, ...] | None
    names_are_critical: bool


@lru_cache(maxsize=_KNOWN)
def read_certificate(data: bytes) -> Certificate:
    """Read one from DER.

    Raises:
        RemoteProtocolError: it is none, or has a field twice or in a form that DER does not have.
    """
    try:
        return _certificate(data)
    except ValueError as exc:
        raise RemoteProtocolError(f"not a certificate: {exc}") from exc


def _certificate(data: bytes) -> Certificate:
    outer = Reader(data)
    signed = outer.inside(der.SEQUENCE)
    outer.end()
    fields = signed.inside(der.SEQUENCE)
    signed.take(der.SEQUENCE)
    signed.take(der.BIT_STRING)
    signed.end()
    version = fields.take_if(der.CONTEXT_0)
    if version not in (None, *_VERSIONS):
        raise ValueError("an unknown version")
    serial = der.read_integer(fields.take(der.INTEGER))
    fields.take(der.SEQUENCE)  # How it is signed, and by whom.
    fields.take(der.SEQUENCE)
    validity = fields.inside(der.SEQUENCE)
    not_before, not_after = _time(validity), _time(validity)
    validity.end()
    has_subject = fields.take(der.SEQUENCE) != b""
    public_key = fields.take_whole(der.SEQUENCE)
    found = _extensions(fields)
    critical, names = found.get(SUBJECT_NAMES, (True, None))
    return Certificate(
        serial,
        not_before,
        not_after,
        has_subject,
        public_key,
        _may_sign(found),
        _uses(found[EXTENDED_USE][1]) if EXTENDED_USE in found else None,
        _uris(names) if names is not None else None,
        critical,
    )


def _time(validity: Reader) -> float:
    if validity.peek() == der.UTC_TIME:
        text = validity.take(der.UTC_TIME)
        text = (b"19" if text[:2] >= _PIVOT else b"20") + text
    else:
        text = validity.take(der.GENERALIZED_TIME)
    digits = text[:-1]
    if len(text) != len("YYYYMMDDHHMMSSZ") or not digits.isdigit() or text[-1:] != b"Z":
        raise ValueError("a time that is not in whole seconds of UTC")
    year, rest = int(digits[:4]), [int(digits[at : at + 2]) for at in range(4, 14, 2)]
    month, day, hour, minute, second = rest
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()


def _extensions(fields: Reader) -> dict[bytes, tuple[bool, bytes]]:
    """The rest of a certificate: object identifier -> whether it is critical, and its contents."""
    for unique_id in (0x81, 0x82):
        fields.take_if(unique_id)
    found: dict[bytes, tuple[bool, bytes]] = {}
    if fields.peek() == der.CONTEXT_3:
        around = fields.inside(der.CONTEXT_3)
        extensions = around.inside(der.SEQUENCE)
        around.end()
        while extensions.peek() >= 0:
            extension = extensions.inside(der.SEQUENCE)
            name = extension.take(der.OID)
            critical = der.read_true(extension.take_if(der.BOOLEAN))
            if name in found:
                raise ValueError("an extension twice")
            found[name] = (critical, extension.take(der.OCTET_STRING))
            extension.end()
    fields.end()
    return found


def _may_sign(found: dict[bytes, tuple[bool, bytes]]) -> bool:
    signs = False
    if BASIC_CONSTRAINTS in found:
        reader = Reader(found[BASIC_CONSTRAINTS][1])
        constraints = reader.inside(der.SEQUENCE)
        reader.end()
        signs = der.read_true(constraints.take_if(der.BOOLEAN))
        if constraints.peek() >= 0:
            der.read_integer(constraints.take(der.INTEGER))
        constraints.end()
    if KEY_USAGE in found:
        reader = Reader(found[KEY_USAGE][1])
        bits = reader.take(der.BIT_STRING)
        reader.end()
        if len(bits) < 2:
            raise ValueError("a key usage without a use")
        signs = signs or bool(bits[1] & _KEY_CERT_SIGN)
    return signs


def _uses(content: bytes) -> tuple[bytes, ...]:
    reader = Reader(content)
    uses = reader.inside(der.SEQUENCE)
    reader.end()
    found = []
    while uses.peek() >= 0:
        found.append(uses.take(der.OID))
    return tuple(found)


def _uris(content: bytes) -> tuple[str, ...]:
    reader = Reader(content)
    names = reader.inside(der.SEQUENCE)
    reader.end()
    found = []
    while (tag := names.peek()) >= 0:
        if tag not in _NAME_TAGS:
            raise ValueError(f"a name of an unknown kind ({tag:#04x})")
        name = names.take(tag)
        if tag == _URI:
            found.append(name.decode("ascii"))
    return tuple(found)
