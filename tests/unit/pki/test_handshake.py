"""Issued certificates in a real TLS 1.3 handshake, both sides verified."""

from __future__ import annotations

import ssl
import time
from pathlib import Path

import pytest

from ambient.model.identity import SpiffeId
from ambient.pki.authority import Authority
from ambient.pki.request import new_request
from ambient.pki.svid import X509Svid, spiffe_id_of

WEB = SpiffeId("cluster.local", "shop", "web")
API = SpiffeId("cluster.local", "shop", "api")


def svid(authority: Authority, identity: SpiffeId, lifetime: float = 60.0, now: float = 0.0) -> X509Svid:
    key, request = new_request(identity)
    issued = authority.issue(request, identity, now or time.time(), lifetime)
    return X509Svid.assemble(identity, key, issued.chain, issued.roots)


def context(side: int, own: X509Svid, folder: Path) -> ssl.SSLContext:
    made = ssl.SSLContext(side)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_verify_locations(cadata=own.roots_pem().decode())
    made.set_alpn_protocols(["h2"])
    file = folder / f"{side}.pem"
    file.write_bytes(own.chain_pem() + own.key_pem())
    made.load_cert_chain(file)
    return made


def shake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Handshake in memory; return client and server."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_side=False)
    far = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    near.write(b"x")
    assert far.read(1) == b"x"
    return near, far


def test_both_ends_learn_the_others_identity(tmp_path: Path) -> None:
    """OpenSSL accepts an empty subject with a critical URI SAN, and shows us the certificate."""
    authority = Authority(time.time())
    client = context(ssl.PROTOCOL_TLS_CLIENT, svid(authority, WEB), tmp_path)
    server = context(ssl.PROTOCOL_TLS_SERVER, svid(authority, API), tmp_path)

    near, far = shake(client, server)

    assert near.version() == "TLSv1.3"
    assert spiffe_id_of(near.getpeercert(binary_form=True) or b"") == API
    assert spiffe_id_of(far.getpeercert(binary_form=True) or b"") == WEB


@pytest.mark.parametrize("case", ["foreign-root", "expired", "not-yet"])
def test_a_certificate_that_does_not_hold_ends_the_handshake(case: str, tmp_path: Path) -> None:
    """A root is per mesh, and time is checked."""
    authority, now = Authority(time.time() - 10_000), time.time()
    bad = {
        "foreign-root": lambda: svid(Authority(now), WEB),
        "expired": lambda: svid(authority, WEB, now=now - 5000, lifetime=60),
        "not-yet": lambda: svid(authority, WEB, now=now + 5000),
    }[case]()
    server = context(ssl.PROTOCOL_TLS_SERVER, svid(authority, API), tmp_path)
    client = context(ssl.PROTOCOL_TLS_CLIENT, bad, tmp_path)
    client.load_verify_locations(cadata=svid(authority, API).roots_pem().decode())

    with pytest.raises(ssl.SSLError, match=r"verify failed|CERTIFICATE|certificate"):
        shake(client, server)
