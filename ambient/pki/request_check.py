"""Certificate signing requests: checking who asks for what.

Floor 1: bytes and values. A request proves that whoever made it holds the key; that the caller *may*
have the identity is the issuer's decision (``ambient.control.issuer``).

Source: ztunnel's requests (empty subject, one critical URI SAN, P-256), reference/ztunnel.md section 5.
"""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from ambient.errors import ConfigError, RemoteProtocolError
from ambient.model.identity import SpiffeId


def check_request(der: bytes, identity: SpiffeId) -> ec.EllipticCurvePublicKey:
    """Return the key that *der* asks to be certified as *identity*.

    Only the key is taken from a request; every other field of the certificate is the issuer's.

    Raises:
        RemoteProtocolError: not a request, not signed by its own key, not P-256, or not for exactly
            *identity* and nothing else.
    """
    try:
        request = x509.load_der_x509_csr(der)
        valid = request.is_signature_valid
        extensions = request.extensions
        key = request.public_key()
    except (ValueError, TypeError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as exc:
        raise RemoteProtocolError(f"not a certificate request: {exc}") from exc
    if not valid:
        raise RemoteProtocolError("the request is not signed by the key it names")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise RemoteProtocolError("only P-256 keys are certified here")
    if (asked := _only_name(extensions)) != identity:
        raise RemoteProtocolError(f"the request is for {asked}, not for {identity}")
    return key


def _only_name(extensions: x509.Extensions) -> SpiffeId:
    try:
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound as exc:
        raise RemoteProtocolError("the request names nobody") from exc
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise RemoteProtocolError("the request must have one URI name and no other")
    try:
        return SpiffeId.parse(names[0].value)
    except ConfigError as exc:
        raise RemoteProtocolError(str(exc)) from exc
