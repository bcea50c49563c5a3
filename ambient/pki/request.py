"""What is asked of an issuer: a fresh key, and the request (CSR) that has it certified.

Floor 1. Source: RFC 2986, RFC 2985 section 5.4.2, RFC 5280 section 4.2.1.6; SPIFFE X509-SVID 1.0 section 4.
"""

from __future__ import annotations

from ambient.model.identity import SpiffeId
from ambient.pki import der
from ambient.pki.der import encode
from ambient.pki.key import PrivateKey

try:
    from ambient.pki.libcrypto import generate
except ImportError:
    # An interpreter that keeps its OpenSSL to itself: the same at the price of a second one.
    from ambient.pki.generate import generate

_VERSION = encode(der.INTEGER, b"\0")
_NO_SUBJECT = encode(der.SEQUENCE)
# ecdsa-with-SHA256, extensionRequest, subjectAltName.
_ALGORITHM = encode(der.SEQUENCE, bytes.fromhex("06082a8648ce3d040302"))
_EXTENSION_REQUEST = bytes.fromhex("06092a864886f70d01090e")
_SUBJECT_NAMES = bytes.fromhex("0603551d11")
_CRITICAL = encode(der.BOOLEAN, b"\xff")
_URI = 0x86


def new_request(identity: SpiffeId) -> tuple[PrivateKey, bytes]:
    """A fresh P-256 key, and the DER request for *identity* that it has signed."""
    asked = b""

    def to_sign(pkcs8: bytes) -> bytes:
        nonlocal asked
        asked = _asked(identity, PrivateKey.read(pkcs8).public)
        return asked

    pkcs8, signature = generate(to_sign)
    signed = encode(der.BIT_STRING, b"\0", signature)
    return PrivateKey.read(pkcs8), encode(der.SEQUENCE, asked, _ALGORITHM, signed)


def _asked(identity: SpiffeId, public: bytes) -> bytes:
    names = encode(der.SEQUENCE, encode(_URI, str(identity).encode("ascii")))
    extension = encode(der.SEQUENCE, _SUBJECT_NAMES, _CRITICAL, encode(der.OCTET_STRING, names))
    value = encode(der.SET, encode(der.SEQUENCE, extension))
    attributes = encode(der.CONTEXT_0, encode(der.SEQUENCE, _EXTENSION_REQUEST, value))
    return encode(der.SEQUENCE, _VERSION, _NO_SUBJECT, public, attributes)
