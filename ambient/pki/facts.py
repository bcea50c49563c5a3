"""What may be said in public about a certificate: its number and its times.

Floor 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509


@dataclass(frozen=True, slots=True)
class Facts:
    """About one certificate.

    Attributes:
        serial: Hexadecimal, as ``openssl x509 -serial`` and istioctl print it, in lower case.
        not_before: Unix seconds.
        not_after: Unix seconds.
    """

    serial: str
    not_before: float
    not_after: float


def facts_of(der: bytes) -> Facts:
    """Read them from a certificate in DER, which is one of ours: it has been checked before."""
    found = x509.load_der_x509_certificate(der)
    return Facts(
        f"{found.serial_number:x}",
        found.not_valid_before_utc.timestamp(),
        found.not_valid_after_utc.timestamp(),
    )
