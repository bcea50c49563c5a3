"""Our reading of certificates, with ``cryptography`` as the judge."""

from __future__ import annotations

import ipaddress
import warnings
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from ambient.errors import RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.pki import certificate as ours
from ambient.pki.authority import Authority
from ambient.pki.certificate import Certificate, read_certificate
from ambient.pki.request import new_request

NOW = 1_700_000_000.0
WEB = SpiffeId("cluster.local", "shop", "web")
KEY = ec.generate_private_key(ec.SECP256R1())
USES = {ExtendedKeyUsageOID.SERVER_AUTH: ours.SERVER_USE, ExtendedKeyUsageOID.CLIENT_AUTH: ours.CLIENT_USE}
NAMES = x509.SubjectAlternativeName(
    [
        x509.UniformResourceIdentifier(str(WEB)),
        x509.DNSName("web.shop"),
        x509.IPAddress(ipaddress.ip_address("10.0.0.1")),
        x509.RFC822Name("web@shop.test"),
        x509.RegisteredID(x509.ObjectIdentifier("1.2.3")),
        x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])),
        x509.OtherName(x509.ObjectIdentifier("1.2.3"), b"\x05\x00"),
    ]
)


def signed(
    *extensions: tuple[x509.ExtensionType, bool],
    subject: str = "",
    serial: int = 1,
    until: datetime = datetime(2030, 1, 1, tzinfo=UTC),
) -> bytes:
    """A certificate with these extensions, and whether each is critical."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else [])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(KEY.public_key())
    made = made.serial_number(serial).not_valid_before(datetime(1980, 2, 29, 23, 59, 59, tzinfo=UTC))
    made = made.not_valid_after(until)
    for extension, critical in extensions:
        made = made.add_extension(extension, critical)
    return made.sign(KEY, SHA256()).public_bytes(Encoding.DER)


def usage(*, certify: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    rest = dict.fromkeys((*others, "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(digital_signature=True, key_cert_sign=certify, **rest)


def judged(data: bytes) -> Certificate:
    """What ``cryptography`` finds in the fields that we read; raises whatever it raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It reads some of what it will refuse one day.
        found = x509.load_der_x509_certificate(data)
        extensions = {each.value.__class__: each for each in found.extensions}
        constraints = extensions.get(x509.BasicConstraints)
        key_usage = extensions.get(x509.KeyUsage)
        uses = extensions.get(x509.ExtendedKeyUsage)
        names = extensions.get(x509.SubjectAlternativeName)
        return Certificate(
            serial=found.serial_number,
            not_before=found.not_valid_before_utc.timestamp(),
            not_after=found.not_valid_after_utc.timestamp(),
            has_subject=bool(found.subject.rdns),
            public_key=found.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
            is_authority=bool(
                (constraints and constraints.value.ca) or (key_usage and key_usage.value.key_cert_sign)
            ),
            uses=tuple(USES.get(use, b"another") for use in uses.value) if uses else None,
            uris=tuple(names.value.get_values_for_type(x509.UniformResourceIdentifier)) if names else None,
            names_are_critical=names.critical if names else True,
        )


def same(found: Certificate, expected: Certificate) -> bool:
    """Whether all fields are; a public key may be written in two forms, of which we compare only one."""
    known = tuple(USES.values())
    uses = found.uses and tuple(use if use in known else b"another" for use in found.uses)
    key = load_der_public_key(found.public_key).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return replace(found, uses=uses, public_key=key) == expected


AUTHORITY = Authority(NOW)
LEAF = AUTHORITY.issue(new_request(WEB)[1], WEB, NOW).chain[0]
CERTIFICATES = {
    "leaf": LEAF,
    "root": AUTHORITY.root,
    "no-extension": signed(),
    "all-names": signed((NAMES, False), subject="web", serial=2**159 - 1),
    "after-2049": signed((NAMES, True), until=datetime(2071, 3, 1, 12, tzinfo=UTC)),
    "authority": signed((x509.BasicConstraints(True, 3), True)),
    "not-an-authority": signed((x509.BasicConstraints(False, None), True), (usage(certify=False), True)),
    "signs-without-being-one": signed((usage(certify=True), False)),
    "uses": signed((x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING, *USES]), False)),
    "unknown-extension": signed((x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"?"), False)),
}


@pytest.mark.parametrize("data", CERTIFICATES.values(), ids=CERTIFICATES.keys())
def test_both_read_the_same(data: bytes) -> None:
    """Field by field."""
    assert same(read_certificate(data), judged(data))


def _changed(data: bytes, changes: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for where, what in changes:
        changed[where % len(changed)] ^= what
    return bytes(changed)


CHANGES = st.lists(st.tuples(st.integers(0, 2000), st.integers(1, 255)), min_size=1, max_size=4)


@settings(max_examples=600)
@given(st.sampled_from(list(CERTIFICATES.values())), CHANGES)
def test_what_both_can_read_they_read_alike(original: bytes, changes: list[tuple[int, int]]) -> None:
    """Damaged in a few bytes, most of which are lengths, tags, names and times."""
    data = _changed(original, changes)
    try:
        found = read_certificate(data)
    except RemoteProtocolError:
        return
    try:
        expected = judged(data)
    except Exception:
        return  # It looks at more than we do, such as who signed and how.
    assert same(found, expected)


@given(st.sampled_from(list(CERTIFICATES.values())), st.integers(0, 2000), st.binary(max_size=3))
def test_a_certificate_has_one_end(original: bytes, cut: int, more: bytes) -> None:
    """Neither a part of one is read, nor anything behind it."""
    data = original[:cut] + more if cut < len(original) else original + b"\0" + more
    if data != original:
        with pytest.raises(RemoteProtocolError, match="not a certificate"):
            read_certificate(data)


def test_an_extension_counts_once() -> None:
    """Of two, one reader would take the first and another one the last."""
    name = x509.ObjectIdentifier("1.2.3.4")
    data = signed(
        (x509.UnrecognizedExtension(name, b"a"), False),
        (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.5"), b"b"), False),
    )
    one, other = bytes.fromhex("06032a0304"), bytes.fromhex("06032a0305")
    twice = data.replace(other, one)
    assert twice.count(one) == 2

    with pytest.raises(RemoteProtocolError, match="twice"):
        read_certificate(twice)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"800229235959Z", b"800230235959Z"),
        (b"800229235959Z", b"8002292359 9Z"),
        (b"800229235959Z", b"800229235959+"),
        (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x03"),
        (b"\x03U\x1d\x13\x01\x01\xff", b"\x03U\x1d\x13\x01\x01\x01"),
    ],
    ids=["30-february", "space", "zone", "version-4", "true-is-1"],
)
def test_odd_fields_are_refused(old: bytes, new: bytes) -> None:
    """Whatever another reader may make of them."""
    data = signed((x509.BasicConstraints(True, None), True))
    assert old in data

    with pytest.raises(RemoteProtocolError, match="not a certificate"):
        read_certificate(data.replace(old, new))
