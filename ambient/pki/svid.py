"""SVIDs: a certificate chain with its key, and the identity a certificate carries.

Floor 1: values. Verifying a chain is TLS's business (``ambient.engine.tls``); here stands who the leaf
says it is, read strictly, because two readings of one certificate are a hole.

Source: SPIFFE X509-SVID 1.0 sections 2, 3 and 4 (exactly one URI SAN, not a CA, no certificate signing).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

from ambient.errors import ConfigError, RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.pki.certificate import CLIENT_USE, SERVER_USE, Certificate, read_certificate
from ambient.pki.key import PrivateKey, armoured

__all__ = ["CLIENT_USE", "SERVER_USE", "X509Svid", "pem", "spiffe_id_of"]


def spiffe_id_of(certificate_der: bytes, *, use: bytes | None = None) -> SpiffeId:
    """Read the one SPIFFE ID of a leaf certificate.

    Args:
        use: What it must be good for, ``SERVER_USE`` or ``CLIENT_USE``; a certificate that names no use is
            good for none (X509-SVID 4.4).

    Raises:
        RemoteProtocolError: no certificate, a CA's, one of another use, no or several URI SANs, or a URI that
            is not exactly a SPIFFE ID of Istio's shape (NUL and other odd bytes included).
    """
    return _identity(read_certificate(certificate_der), use)


def _identity(certificate: Certificate, use: bytes | None = None) -> SpiffeId:
    if certificate.is_authority:
        raise RemoteProtocolError("a certificate that may sign others (a CA certificate) is no workload's")
    if use is not None and certificate.uses is None:
        raise RemoteProtocolError("no extended key usage")
    if use is not None and use not in (certificate.uses or ()):
        raise RemoteProtocolError("its extended key usage is another")
    if not certificate.has_subject and not certificate.names_are_critical:
        # RFC 5280 4.2.1.6.
        raise RemoteProtocolError("no subject, and its alternative names are not critical")
    uris = certificate.uris
    if uris is None:
        raise RemoteProtocolError("no subject alternative name")
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
    key: PrivateKey = field(repr=False, compare=False)

    @classmethod
    def assemble(
        cls,
        identity: SpiffeId,
        key: PrivateKey,
        chain: tuple[bytes, ...],
        roots: tuple[bytes, ...],
    ) -> Self:
        """Join the issuer's answer with the key it was asked for.

        Raises:
            RemoteProtocolError: the leaf is for another identity or another key.
        """
        if not chain or not roots:
            raise RemoteProtocolError("the issuer answered without a chain or without roots")
        leaf = read_certificate(chain[0])
        if (named := _identity(leaf)) != identity:
            raise RemoteProtocolError(f"the issuer answered for {named}, asked was {identity}")
        if leaf.public_key != key.public:
            raise RemoteProtocolError(f"the certificate for {identity} is of another key")
        return cls(
            identity=identity,
            chain=chain,
            roots=roots,
            not_before=leaf.not_before,
            not_after=leaf.not_after,
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
        return self.key.pem()


def pem(certificates: tuple[bytes, ...]) -> bytes:
    """DER certificates as concatenated PEM."""
    return b"".join(armoured(b"CERTIFICATE", each) for each in certificates)
