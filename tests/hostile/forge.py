"""Certificates that no honest CA would sign, by the mesh's own CA."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ambient.pki.authority import Authority

CLIENT, SERVER, CODE = (
    ExtendedKeyUsageOID.CLIENT_AUTH,
    ExtendedKeyUsageOID.SERVER_AUTH,
    ExtendedKeyUsageOID.CODE_SIGNING,
)


@dataclass
class Signer:
    """Somebody whose name and key are on a certificate."""

    certificate: x509.Certificate
    key: Any

    @classmethod
    def of(cls, authority: Authority) -> Signer:
        """The mesh's root."""
        return cls(authority._root, authority._key)

    def pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    def key_pem(self) -> bytes:
        """The key."""
        return bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


@dataclass
class Leaf:
    """What to put into a certificate; the defaults are those of an honest one."""

    names: Iterable[x509.GeneralName] = ()
    critical: bool = True
    subject: str = ""
    days: tuple[float, float] = (-1, 1)
    uses: tuple[x509.ObjectIdentifier, ...] = (SERVER, CLIENT)
    ca: bool = False
    path: int | None = None
    signs: bool = False
    extra: tuple[tuple[x509.ExtensionType, bool], ...] = ()
    digest: Any = field(default_factory=hashes.SHA256)
    key: Any = None

    def signed(self, signer: Signer | None) -> Signer:
        """By *signer*, or by itself."""
        key = self.key or ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.subject)] if self.subject else [])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(signer.certificate.subject if signer else name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=self.days[0]))
            .not_valid_after(now + timedelta(days=self.days[1]))
            .add_extension(x509.BasicConstraints(self.ca, self.path if self.ca else None), critical=True)
            .add_extension(_usage(self.signs or self.ca), critical=True)
        )
        names = list(self.names)
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=self.critical)
        if self.uses:
            made = made.add_extension(x509.ExtendedKeyUsage(self.uses), critical=False)
        for extension, critical in self.extra:
            made = made.add_extension(extension, critical=critical)
        return Signer(made.sign(signer.key if signer else key, self.digest), key)


def _usage(certify: bool) -> x509.KeyUsage:
    return x509.KeyUsage(True, False, False, False, False, certify, certify, False, False)


def uri(text: str) -> x509.GeneralName:
    """A URI name, whatever is in it."""
    return x509.UniformResourceIdentifier._init_without_validation(text)


def chain_pem(leaf: Signer, *above: Signer) -> bytes:
    """What a client loads: the leaf, its issuers, its key."""
    return b"".join(each.pem() for each in (leaf, *above)) + leaf.key_pem()
