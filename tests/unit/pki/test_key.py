"""Private keys: carried as bytes, shown to nobody."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from ambient.pki.key import PrivateKey, armoured

P256 = ec.generate_private_key(ec.SECP256R1())


def packed(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def test_a_key_comes_back_from_pem() -> None:
    """As others read and write it."""
    theirs = P256.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    key = PrivateKey.read_pem(theirs)

    assert key == PrivateKey.read(packed(P256))
    assert key.pem() == theirs
    assert packed(load_pem_private_key(key.pem(), None)) == packed(P256)  # type: ignore[arg-type]
    assert key.public == P256.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_a_key_shows_nothing_of_itself() -> None:
    """Records and tracebacks print what they are given."""
    assert repr(PrivateKey.read(packed(P256))) == "PrivateKey()"


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        P256.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        P256.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
        armoured(b"PRIVATE KEY", packed(P256)) * 2,
        armoured(b"PRIVATE KEY", packed(P256)[:-1]),
        armoured(b"PRIVATE KEY", packed(P256) + b"\0"),
        armoured(b"PRIVATE KEY", packed(ec.generate_private_key(ec.SECP384R1()))),
        armoured(b"PRIVATE KEY", packed(ed25519.Ed25519PrivateKey.generate())),
        b"-----BEGIN PRIVATE KEY-----\nA\n-----END PRIVATE KEY-----\n",
    ],
    ids=["empty", "sec1", "encrypted", "two", "cut", "more", "p384", "ed25519", "half-a-character"],
)
def test_other_keys_are_refused(pem: bytes) -> None:
    """And the message shows nothing of them."""
    with pytest.raises(ValueError) as caught:
        PrivateKey.read_pem(pem)

    secret = [line.decode() for line in pem.splitlines() if len(line) > 10 and b"-----" not in line]
    assert not any(line in str(caught.value) for line in secret)
