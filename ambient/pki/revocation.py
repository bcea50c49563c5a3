"""Certificates that their issuer has taken back: reading certificate revocation lists.

Floor 1: bytes and values. A list counts only if the issuer that it names has signed it, and is one of those
we trust; a list that should have been renewed still counts, because what was taken back stays so.

Source: RFC 5280 section 5; Istio's ``CRL_PATH`` (a file of one or more PEM lists).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

# A list of 10,000 certificates is about 400 KiB; more than this is not read. Picked, not measured.
MAX_CRL_BYTES = 4 * 1024 * 1024

_PEM = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What one issuer took back.

    Attributes:
        issuer: DER of its name.
        serials: Of its certificates.
        next_update: Unix seconds by which there should be a newer list.
    """

    issuer: bytes
    serials: frozenset[int]
    next_update: float
    _parsed: x509.CertificateRevocationList

    def is_signed_by_one_of(self, roots: Iterable[bytes]) -> bool:
        """Whether the issuer is among *roots* (DER), and the signature its."""
        for der in roots:
            root = x509.load_der_x509_certificate(der)
            if root.subject.public_bytes() == self.issuer:
                try:
                    return self._parsed.is_signature_valid(root.public_key())  # type: ignore[arg-type]
                except (TypeError, UnsupportedAlgorithm):
                    return False
        return False


def read_lists(pem: bytes) -> tuple[list[RevocationList], list[str]]:
    """Every list of *pem*, and complaints about what could not be read."""
    found: list[RevocationList] = []
    complaints: list[str] = []
    blocks = _PEM.findall(pem)
    if not blocks:
        complaints.append("no revocation list in it")
    for number, block in enumerate(blocks, 1):
        try:
            parsed = x509.load_pem_x509_crl(block)
            serials = frozenset(each.serial_number for each in parsed)
        except ValueError as exc:
            complaints.append(f"list {number} cannot be read: {exc}")
            continue
        until = parsed.next_update_utc
        found.append(
            RevocationList(
                parsed.issuer.public_bytes(), serials, until.timestamp() if until else float("inf"), parsed
            )
        )
    return found, complaints


def is_revoked(certificate_der: bytes, lists: Iterable[RevocationList]) -> bool:
    """Whether the issuer of a certificate, which OpenSSL has verified, has taken it back."""
    certificate = x509.load_der_x509_certificate(certificate_der)
    issuer = certificate.issuer.public_bytes()
    return any(each.issuer == issuer and certificate.serial_number in each.serials for each in lists)
