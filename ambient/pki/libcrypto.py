"""Fresh P-256 keys by OpenSSL's libcrypto, the one that ``hashlib`` and ``ssl`` have loaded already.

Floor 1: bytes; no key outlives the call that made it but as those bytes.
``cryptography`` would do the same with a second OpenSSL of its own: 4 MB in every process that imports it.

Raises ImportError where the interpreter shows nobody its libcrypto; ``ambient.pki.generate`` is another way.

Source: EVP_PKEY_keygen(3), EVP_DigestSign(3), d2i_PKCS8PrivateKey_bio(3); all of it since OpenSSL 1.1.1.
"""

from __future__ import annotations

import _hashlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from ambient.errors import Unavailable

_EVP_PKEY_EC = 408
# An ECDSA signature of P-256 in DER is at most this: two integers of 33 bytes and their headers.
_SIGNATURE_BYTES = 72

_Pointer: TypeAlias = ctypes.c_void_p


def _bind(library: ctypes.CDLL) -> Callable[..., Any]:
    def function(name: str, result: Any, *arguments: Any) -> Any:
        try:
            found = getattr(library, name)
        except AttributeError as exc:
            raise ImportError(f"no {name} in this interpreter's libcrypto") from exc
        found.restype, found.argtypes = result, arguments
        return found

    return function


try:
    # Without a file, it is part of the interpreter, and so is libcrypto.
    _function = _bind(ctypes.CDLL(getattr(_hashlib, "__file__", None)))
except OSError as exc:
    raise ImportError(f"libcrypto cannot be asked: {exc}") from exc

_OUT, _INT, _SIZE = ctypes.POINTER(ctypes.c_void_p), ctypes.c_int, ctypes.c_size_t
_clear_errors = _function("ERR_clear_error", None)
_context_new = _function("EVP_PKEY_CTX_new_id", _Pointer, _INT, _Pointer)
_context_free = _function("EVP_PKEY_CTX_free", None, _Pointer)
_context_set = _function("EVP_PKEY_CTX_ctrl_str", _INT, _Pointer, ctypes.c_char_p, ctypes.c_char_p)
_keygen_init = _function("EVP_PKEY_keygen_init", _INT, _Pointer)
_keygen = _function("EVP_PKEY_keygen", _INT, _Pointer, _OUT)
_key_free = _function("EVP_PKEY_free", None, _Pointer)
_to_pkcs8 = _function("EVP_PKEY2PKCS8", _Pointer, _Pointer)
_pkcs8_free = _function("PKCS8_PRIV_KEY_INFO_free", None, _Pointer)
_pkcs8_out = _function("i2d_PKCS8_PRIV_KEY_INFO", _INT, _Pointer, _OUT)
_digest_new = _function("EVP_MD_CTX_new", _Pointer)
_digest_free = _function("EVP_MD_CTX_free", None, _Pointer)
_sha256 = _function("EVP_sha256", _Pointer)
_sign_init = _function("EVP_DigestSignInit", _INT, _Pointer, _OUT, _Pointer, _Pointer, _Pointer)
_sign = _function(
    "EVP_DigestSign", _INT, _Pointer, ctypes.c_char_p, ctypes.POINTER(_SIZE), ctypes.c_char_p, _SIZE
)


def generate(to_sign: Callable[[bytes], bytes]) -> tuple[bytes, bytes]:
    """A fresh P-256 key, as PKCS#8 in DER, and its ECDSA signature over SHA-256, in DER.

    Args:
        to_sign: Given the key, what it is to sign. (To read a key back takes OpenSSL 3.0 a millisecond.)

    Raises:
        Unavailable: OpenSSL cannot, for want of memory or of randomness.
    """
    with _fresh() as key:
        packed = _some(_to_pkcs8(key))
        try:
            pkcs8 = _encoded(packed)
        finally:
            _pkcs8_free(packed)
        return pkcs8, _signature(key, to_sign(pkcs8))


@contextmanager
def _fresh() -> Iterator[_Pointer]:
    context, key = _some(_context_new(_EVP_PKEY_EC, None)), _Pointer()
    try:
        _done(_keygen_init(context))
        _done(_context_set(context, b"ec_paramgen_curve", b"P-256"))
        _done(_keygen(context, key))
        yield key
    finally:
        _key_free(key)
        _context_free(context)


def _encoded(pkcs8: _Pointer) -> bytes:
    size = _pkcs8_out(pkcs8, None)
    _done(size)
    buffer = ctypes.create_string_buffer(size)
    _done(_pkcs8_out(pkcs8, _Pointer(ctypes.addressof(buffer))))
    return buffer.raw


def _signature(key: _Pointer, message: bytes) -> bytes:
    context = _some(_digest_new())
    try:
        _done(_sign_init(context, None, _sha256(), None, key))
        signature, size = ctypes.create_string_buffer(_SIGNATURE_BYTES), _SIZE(_SIGNATURE_BYTES)
        _done(_sign(context, signature, size, message, len(message)))
        return signature.raw[: size.value]
    finally:
        _digest_free(context)


def _some(pointer: int | None) -> _Pointer:
    _done(1 if pointer else 0)
    return _Pointer(pointer)


def _done(result: int) -> None:
    if result <= 0:
        # Whatever stayed in the thread's queue would be taken for the next failure of ``ssl``.
        _clear_errors()
        raise Unavailable("OpenSSL made no key")
