"""A key and its request, by OpenSSL and by whoever stands in for it, with ``cryptography`` as the judge."""

from __future__ import annotations

import ctypes
import ssl
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ambient.errors import Unavailable
from ambient.model.identity import SpiffeId
from ambient.pki import generate, libcrypto, request
from ambient.pki.request_check import check_request

WEB = SpiffeId("cluster.local", "shop", "web")
LONG = SpiffeId("d" * 250, "n" * 60, "a" * 250)


@pytest.mark.parametrize("way", [libcrypto.generate, generate.generate], ids=["libcrypto", "cryptography"])
@pytest.mark.parametrize("identity", [WEB, LONG], ids=["short", "long"])
def test_a_request_is_for_one_name_and_signed_by_its_key(
    way: Callable[[Callable[[bytes], bytes]], tuple[bytes, bytes]],
    identity: SpiffeId,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The form that Istio's ztunnel sends."""
    monkeypatch.setattr(request, "generate", way)

    key, der = request.new_request(identity)

    public = check_request(der, identity)
    parsed = x509.load_der_x509_csr(der)
    names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert parsed.public_bytes(Encoding.DER) == der
    assert list(parsed.subject) == []
    assert len(parsed.extensions) == 1
    assert names.critical
    assert public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) == key.public
    private = load_pem_private_key(key.pem(), None)
    assert private.public_key() == public


def test_no_two_keys_are_alike() -> None:
    """Nor the same one for two names."""
    assert len({request.new_request(WEB)[0].public for _ in range(20)}) == 20


def test_a_key_that_cannot_be_made_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wants a certificate hears why, and OpenSSL's next failure is not this one."""
    monkeypatch.setattr(libcrypto, "_keygen", lambda context, key: 0)

    with pytest.raises(Unavailable, match="no key"):
        libcrypto.generate(lambda pkcs8: pkcs8)

    last = ctypes.CDLL(getattr(libcrypto._hashlib, "__file__", None)).ERR_peek_error
    last.restype = ctypes.c_ulong
    assert last() == 0
    assert ssl.create_default_context().verify_mode == ssl.CERT_REQUIRED


def test_a_libcrypto_without_a_function_is_none_to_us() -> None:
    """Said where it is loaded, not where a key is wanted."""
    with pytest.raises(ImportError, match="EVP_sha256"):
        libcrypto._bind(SimpleNamespace())("EVP_sha256", None)  # type: ignore[arg-type]


def test_an_interpreter_that_keeps_its_openssl_to_itself_makes_keys_as_well() -> None:
    """By another library, which only it has to load."""
    code = (
        "import sys; sys.modules['ambient.pki.libcrypto'] = None\n"
        "from ambient.pki.request import generate, new_request\n"
        "from ambient.pki.request_check import check_request\n"
        "from ambient.model.identity import SpiffeId\n"
        "web = SpiffeId('cluster.local', 'shop', 'web')\n"
        "check_request(new_request(web)[1], web); print(generate.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.stdout, done.stderr, done.returncode) == ("ambient.pki.generate\n", "", 0)
