"""The certificate authority of one mesh: a root made at start, in memory only, and the leafs it signs.

Floor 1: no clock and no file; the time is an argument. When the process ends the root is gone, and with it
every identity it vouched for.

Source: Istio's certificates (ECDSA P-256, one critical URI SAN, empty subject, server and client use),
RFC 5280 section 4.2 for the extensions.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ambient.errors import ConfigError
from ambient.model.identity import DEFAULT_TRUST_DOMAIN, SpiffeId
from ambient.pki.request_check import check_request

# Istio's SECRET_TTL.
LEAF_LIFETIME_SECONDS = 24 * 3600.0
# Istio's self-signed root: ten years. Ours ends with the process.
ROOT_LIFETIME_SECONDS = 10 * 365 * 24 * 3600.0
# Clocks of one cluster disagree a little; Istio backdates by two minutes as well.
BACKDATE_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Issued:
    """A signed answer: DER chain (leaf first), the roots, and when it ends (unix seconds)."""

    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    not_after: float


class Authority:
    """Signs leafs of one trust domain.

    Args:
        now: Unix seconds; the root is valid from a little before.
    """

    def __init__(self, now: float, trust_domain: str = DEFAULT_TRUST_DOMAIN) -> None:
        self.trust_domain = trust_domain
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._root = _self_signed(self._key, trust_domain, now)
        self.root = self._root.public_bytes(Encoding.DER)

    def __repr__(self) -> str:
        return f"Authority({self.trust_domain!r})"

    def issue(
        self, request: bytes, identity: SpiffeId, now: float, lifetime: float = LEAF_LIFETIME_SECONDS
    ) -> Issued:
        """Sign a leaf for *identity* with the key of *request*.

        Whether the caller may have it was decided before.

        Raises:
            RemoteProtocolError: the request is not good for *identity*.
            ConfigError: *identity* is of another trust domain, or *lifetime* is not positive.
        """
        if identity.trust_domain != self.trust_domain:
            raise ConfigError(f"{identity} is not of the trust domain {self.trust_domain}")
        if lifetime <= 0:
            raise ConfigError(f"a certificate cannot live {lifetime} seconds")
        key = check_request(request, identity)
        until = min(_when(now) + timedelta(seconds=lifetime), self._root.not_valid_after_utc)
        builder = self._leaf(identity, key).not_valid_after(until)
        leaf = builder.not_valid_before(_when(now - BACKDATE_SECONDS)).sign(self._key, SHA256())
        return Issued((leaf.public_bytes(Encoding.DER),), (self.root,), until.timestamp())

    def _leaf(self, identity: SpiffeId, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        name = x509.UniformResourceIdentifier(str(identity))
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self._root.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(signer, critical=False)
        )


def _self_signed(key: ec.EllipticCurvePrivateKey, trust_domain: str, now: float) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain)])
    public = key.public_key()
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_when(now - BACKDATE_SECONDS))
        .not_valid_after(_when(now + ROOT_LIFETIME_SECONDS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(certify=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .sign(key, SHA256())
    )


def _usage(*, sign: bool = False, certify: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=certify,
        crl_sign=certify,
        encipher_only=False,
        decipher_only=False,
    )


def _when(seconds: float) -> datetime:
    """X.509 times are whole seconds; round down."""
    return datetime.fromtimestamp(int(seconds), UTC)
