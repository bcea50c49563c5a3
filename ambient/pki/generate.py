"""P-256 keys by ``cryptography``, where ``ambient.pki.libcrypto`` has nobody to ask.

Floor 1.
"""

from __future__ import annotations

from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat


def generate(to_sign: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
    """As ``ambient.pki.libcrypto.generate``."""
    key = ec.generate_private_key(ec.SECP256R1())
    pkcs8 = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return pkcs8, key.sign(to_sign(pkcs8), ec.ECDSA(SHA256()))
