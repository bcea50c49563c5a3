"""SVIDs: a certificate chain with its key, and the identity a certificate carries.

Floor 1: values. Verifying a chain is TLS's business (``ambient.engine.tls``); here stands who the leaf
says it is, read strictly, because two readings of one certificate are a hole.

Source: SPIFFE X509-SVID 1.0 sections 2, 3 and 4 (exactly one URI SAN, not a CA, no certificate signing).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from ambient.errors import ConfigError, RemoteProtocolError
from ambient.model.identity import SpiffeId

SERVER_USE, CLIENT_USE = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a fresh P-256 key; it never leaves the process as a file."""
    return ec.generate_private_key(ec.SECP256R1())


def spiffe_id_of(certificate_der: bytes, *, use: x509.ObjectIdentifier | None = None) -> SpiffeId:
    """Read the one SPIFFE ID of a leaf certificate.

    Args:
        use: What it must be good for; a certificate that names no use is good for none (X509-SVID 4.4).

    Raises:
        RemoteProtocolError: no certificate, a CA's, one of another use, no or several URI SANs, or a URI that
            is not exactly a SPIFFE ID of Istio's shape (NUL and other odd bytes included).
    """
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        extensions = certificate.extensions
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as exc:
        raise RemoteProtocolError(f"not a certificate: {exc}") from exc
    _require_leaf(extensions)
    if use is not None:
        _require_use(extensions, use)
    if not certificate.subject.rdns and not _names_are_critical(extensions):
        raise RemoteProtocolError(
            "no subject, and its alternative names are not critical"
        )  # RFC 5280 4.2.1.6
    return _single_identity(extensions)


def _require_leaf(extensions: x509.Extensions) -> None:
    for extension in extensions:
        match extension.value:
            case x509.BasicConstraints(ca=True):
                raise RemoteProtocolError("a CA certificate is no workload's certificate")
            case x509.KeyUsage(key_cert_sign=True):
                raise RemoteProtocolError("a certificate that may sign others is no workload's")
            case _:
                pass


def _require_use(extensions: x509.Extensions, use: x509.ObjectIdentifier) -> None:
    try:
        uses = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound as exc:
        raise RemoteProtocolError("no extended key usage") from exc
    if use not in uses:
        raise RemoteProtocolError("its extended key usage is another")


def _names_are_critical(extensions: x509.Extensions) -> bool:
    try:
        return extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
    except x509.ExtensionNotFound:
        return True  # That there are none is told by whoever looks for them.


def _single_identity(extensions: x509.Extensions) -> SpiffeId:
    """The SPIFFE ID of the subject alternative names of a certificate or a request."""
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound as exc:
        raise RemoteProtocolError("no subject alternative name") from exc
    if len(uris) != 1:
        raise RemoteProtocolError(f"{len(uris)} URI names, must be exactly one")
    try:
        return SpiffeId.parse(uris[0])
    except ConfigError as exc:
        raise RemoteProtocolError(str(exc)) from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class X509Svid:
    """What proves an identity: DER chain (leaf first), its key, and the roots to trust in others.

    Times are unix seconds. The key shows in no ``repr``; PEM forms exist only in memory.
    """

    identity: SpiffeId
    chain: tuple[bytes, ...] = field(repr=False)
    roots: tuple[bytes, ...] = field(repr=False)
    not_before: float
    not_after: float
    key: ec.EllipticCurvePrivateKey = field(repr=False, compare=False)

    @classmethod
    def assemble(
        cls,
        identity: SpiffeId,
        key: ec.EllipticCurvePrivateKey,
        chain: tuple[bytes, ...],
        roots: tuple[bytes, ...],
    ) -> Self:
        """Join the issuer's answer with the key it was asked for.

        Raises:
            RemoteProtocolError: the leaf is for another identity or another key.
        """
        if not chain or not roots:
            raise RemoteProtocolError("the issuer answered without a chain or without roots")
        if (named := spiffe_id_of(chain[0])) != identity:
            raise RemoteProtocolError(f"the issuer answered for {named}, asked was {identity}")
        leaf = x509.load_der_x509_certificate(chain[0])
        if _public_bytes(leaf.public_key()) != _public_bytes(key.public_key()):
            raise RemoteProtocolError(f"the certificate for {identity} is of another key")
        return cls(
            identity=identity,
            chain=chain,
            roots=roots,
            not_before=leaf.not_valid_before_utc.timestamp(),
            not_after=leaf.not_valid_after_utc.timestamp(),
            key=key,
        )

    def chain_pem(self) -> bytes:
        """The chain as PEM, leaf first."""
        return pem(self.chain)

    def roots_pem(self) -> bytes:
        """The roots as PEM."""
        return pem(self.roots)

    def key_pem(self) -> bytes:
        """The key as unencrypted PKCS 8 PEM: for a TLS context's memory file, nothing else."""
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def pem(certificates: tuple[bytes, ...]) -> bytes:
    """DER certificates as concatenated PEM."""
    loaded = (x509.load_der_x509_certificate(der) for der in certificates)
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in loaded)


def _public_bytes(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RemoteProtocolError("not an elliptic curve key")
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
