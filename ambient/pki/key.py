"""Private keys, as bytes: who may prove an identity.

Floor 1: values. A key is made together with the request for its certificate (``ambient.pki.request``), and
is used by TLS alone; here it is only carried, and asked for the public key that belongs to it.

Source: RFC 5208 (PKCS#8), RFC 5915 (what is in it), RFC 5480 (the public key), RFC 7468 (PEM).
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass, field
from typing import Self

from ambient.pki import der
from ambient.pki.der import Reader

# id-ecPublicKey with prime256v1.
_P256 = bytes.fromhex("301306072a8648ce3d020106082a8648ce3d030107")
# An uncompressed point: a byte for its form, and two coordinates; before it, no bit of the last byte unused.
_POINT_BYTES = 1 + 1 + 2 * 32
_PEM = re.compile(rb"-----BEGIN PRIVATE KEY-----([A-Za-z0-9+/=\s]+)-----END PRIVATE KEY-----\s*")
_LINE_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class PrivateKey:
    """One P-256 key; of what is secret nothing shows in its ``repr``.

    Attributes:
        public: SubjectPublicKeyInfo, DER.
    """

    _pkcs8: bytes = field(repr=False)
    public: bytes = field(repr=False)

    @classmethod
    def read(cls, pkcs8: bytes) -> Self:
        """Take PKCS#8 in DER.

        Raises:
            ValueError: no such key. The message shows nothing of it.
        """
        return cls(pkcs8, _public_of(pkcs8))

    @classmethod
    def read_pem(cls, text: bytes) -> Self:
        """Take what ``pem`` gave.

        Raises:
            ValueError: it did not.
        """
        found = _PEM.fullmatch(text)
        if found is None:
            raise ValueError("not one private key in PEM")
        return cls.read(binascii.a2b_base64(found[1]))

    def pem(self) -> bytes:
        """Unencrypted PKCS#8 in PEM: for a TLS context's memory file and a sealed one, nothing else."""
        return armoured(b"PRIVATE KEY", self._pkcs8)


def armoured(label: bytes, data: bytes) -> bytes:
    """DER in PEM."""
    text = binascii.b2a_base64(data, newline=False)
    lines = [text[at : at + _LINE_CHARACTERS] for at in range(0, len(text), _LINE_CHARACTERS)]
    return b"\n".join((b"-----BEGIN " + label + b"-----", *lines, b"-----END " + label + b"-----", b""))


def _public_of(pkcs8: bytes) -> bytes:
    outer = Reader(pkcs8)
    info = outer.inside(der.SEQUENCE)
    outer.end()
    if info.take(der.INTEGER) != b"\0" or info.take_whole(der.SEQUENCE) != _P256:
        raise ValueError("not a P-256 key")
    inner = Reader(info.take(der.OCTET_STRING))
    info.end()
    key = inner.inside(der.SEQUENCE)
    inner.end()
    key.take(der.INTEGER)
    key.take(der.OCTET_STRING)
    key.take_if(der.CONTEXT_0)
    around = key.inside(der.CONTEXT_1)
    key.end()
    point = around.take(der.BIT_STRING)
    around.end()
    if len(point) != _POINT_BYTES:
        raise ValueError("not a P-256 key")
    return der.encode(der.SEQUENCE, _P256, der.encode(der.BIT_STRING, point))
