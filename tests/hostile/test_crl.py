"""T24 of reference/threats.md: certificates that were taken back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from ambient.engine.revocations import Revocations
from ambient.pki.authority import Authority
from tests.hostile.forge import Signer
from tests.hostile.peers import Door, client_context
from tests.hostile.scene import COVERED, Case, Scene, play
from tests.hostile.test_tls import served

ROW = "T24"
COVERED.add(ROW)


def crl(signer: Signer, *revoked: bytes, days: float = 1) -> bytes:
    """A list by *signer* of the certificates (DER) it takes back."""
    now = datetime.now(UTC)
    made = x509.CertificateRevocationListBuilder().issuer_name(signer.certificate.subject)
    made = made.last_update(now - timedelta(days=2)).next_update(now + timedelta(days=days))
    for der in revoked:
        serial = x509.load_der_x509_certificate(der).serial_number
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        made = made.add_revoked_certificate(entry)
    return made.sign(signer.key, hashes.SHA256()).public_bytes(Encoding.PEM)


def refused(door: Door) -> None:
    """The genuine certificate is not taken any more."""
    door.refuses(client_context(door.svid))


Make = Callable[[Signer, bytes], bytes]


def stranger(ca: Signer) -> Signer:
    """Somebody of the CA's name, with another key."""
    return Signer(ca.certificate, ec.generate_private_key(ec.SECP256R1()))


HOW: dict[str, tuple[Make, bool, str]] = {
    "revoked": (lambda ca, leaf: crl(ca, leaf), False, ""),
    "expired-list": (lambda ca, leaf: crl(ca, leaf, days=-1), False, "has expired"),
    "second-list": (lambda ca, leaf: crl(ca) + crl(ca, leaf), False, ""),
    "others": (lambda ca, leaf: crl(ca), True, ""),
    "forged": (lambda ca, leaf: crl(stranger(ca), leaf), True, "not signed by an issuer we trust"),
    "nonsense": (lambda ca, leaf: b"nonsense", True, "no revocation list"),
    "half": (lambda ca, leaf: crl(ca, leaf)[:200] + b"\n-----END X509 CRL-----", True, "cannot be read"),
    "absent": (lambda ca, leaf: b"", True, "cannot be read"),
}


@pytest.mark.parametrize("name", HOW)
def test_revocation(tmp_path: Path, name: str) -> None:
    """Revoked is revoked, even by an old list; a list by nobody we trust counts for nothing, loudly."""
    make, lets_in, complaint = HOW[name]
    said: list[str] = []
    file = tmp_path / "crl.pem"

    def prepare(scene: Scene) -> None:
        leaf = scene.mesh.svids._svids[scene.web.identity].chain[0]
        if data := make(Signer.of(scene.mesh.svids.authority), leaf):
            file.write_bytes(data)
        scene.mesh.reactor.revocations = Revocations(str(file), said.append)

    reason = None if lets_in else "tls failure: revoked: "
    play(Case(ROW, name, served() if lets_in else refused, reason, prepare=prepare))
    assert len(said) == bool(complaint)
    assert all(complaint in each for each in said)


def test_a_file_that_went_away_lets_nobody_back_in(tmp_path: Path) -> None:
    """And a change of it counts within a second."""
    now: list[float] = [0.0]
    said: list[str] = []
    authority = Authority(datetime.now(UTC).timestamp())
    signer, file = Signer.of(authority), tmp_path / "crl.pem"
    leaf = authority.root
    revocations = Revocations(str(file), said.append, clock=lambda: now[0])
    assert not revocations.is_revoked(leaf, (authority.root,))
    file.write_bytes(crl(signer, leaf))
    now[0] += 1
    assert revocations.is_revoked(leaf, (authority.root,))
    file.unlink()
    now[0] += 1
    assert revocations.is_revoked(leaf, (authority.root,))
    assert len(said) == 2
