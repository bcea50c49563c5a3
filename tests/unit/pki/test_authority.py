"""The CA: what a leaf must look like, and whom it refuses."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from ambient.errors import ConfigError, RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.pki.authority import BACKDATE_SECONDS, Authority
from ambient.pki.request import new_request
from ambient.pki.request_check import check_request
from ambient.pki.svid import X509Svid, spiffe_id_of

NOW = 1_700_000_000.0
WEB = SpiffeId("cluster.local", "shop", "web")
API = SpiffeId("cluster.local", "shop", "api")


def signed(**names: list[x509.GeneralName]) -> bytes:
    """A self-signed certificate with these subject alternative names."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(x509_time(NOW))
        .not_valid_after(x509_time(NOW + 10))
    )
    if "names" in names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names["names"]), critical=True)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


def x509_time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier._init_without_validation(text)


def test_a_leaf_says_who_and_for_how_long_and_nothing_else() -> None:
    """Peers in Istio check exactly these fields."""
    _, request = new_request(WEB)

    issued = Authority(NOW).issue(request, WEB, NOW, lifetime=3600)

    leaf = x509.load_der_x509_certificate(issued.chain[0])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    uses = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert spiffe_id_of(issued.chain[0]) == WEB
    assert names.critical
    assert [name.value for name in names.value] == [str(WEB)]
    assert set(uses) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert list(leaf.subject) == []
    assert leaf.not_valid_before_utc.timestamp() == NOW - BACKDATE_SECONDS
    assert leaf.not_valid_after_utc.timestamp() == issued.not_after == NOW + 3600


def test_the_root_may_sign_leafs_and_no_further_authority() -> None:
    """A leaf that could sign would be a second root."""
    root = x509.load_der_x509_certificate(Authority(NOW).root)

    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value

    assert (constraints.ca, constraints.path_length) == (True, 0)
    with pytest.raises(RemoteProtocolError, match="CA certificate"):
        spiffe_id_of(Authority(NOW).root)


def test_two_meshes_do_not_share_a_root() -> None:
    """A root is made per mesh, in memory."""
    assert Authority(NOW).root != Authority(NOW).root


@pytest.mark.parametrize(
    ("identity", "lifetime", "reason"),
    [
        (SpiffeId("other.domain", "shop", "web"), 60.0, "not of the trust domain"),
        (WEB, 0.0, "cannot live"),
    ],
    ids=["foreign-domain", "no-lifetime"],
)
def test_what_the_authority_does_not_sign(identity: SpiffeId, lifetime: float, reason: str) -> None:
    """It vouches for its own trust domain only."""
    with pytest.raises(ConfigError, match=reason):
        Authority(NOW).issue(new_request(identity)[1], identity, NOW, lifetime)


def test_a_request_for_somebody_else_is_refused() -> None:
    """The name in the frame and the name in the request must be one."""
    with pytest.raises(RemoteProtocolError, match="not for"):
        check_request(new_request(API)[1], WEB)


def test_a_request_must_be_signed_by_the_key_it_names() -> None:
    """Otherwise a node could have somebody else's key certified."""
    der = bytearray(new_request(WEB)[1])
    der[-1] ^= 1

    with pytest.raises(RemoteProtocolError, match=r"not signed|not a certificate request"):
        check_request(bytes(der), WEB)


def csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, *names: x509.GeneralName) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(key, SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize(
    ("der", "reason"),
    [
        (csr(ec.generate_private_key(ec.SECP384R1()), uri(str(WEB))), "P-256"),
        (csr(rsa.generate_private_key(65537, 2048), uri(str(WEB))), "P-256"),
        (csr(ec.generate_private_key(ec.SECP256R1())), "names nobody"),
        (csr(ec.generate_private_key(ec.SECP256R1()), uri(str(WEB)), uri(str(API))), "one URI name"),
        (csr(ec.generate_private_key(ec.SECP256R1()), uri(str(WEB)), x509.DNSName("web")), "one URI name"),
        (csr(ec.generate_private_key(ec.SECP256R1()), x509.DNSName("web")), "one URI name"),
        (csr(ec.generate_private_key(ec.SECP256R1()), uri("https://web/")), "not spiffe"),
        (b"\x30\x03\x02\x01\x01", "not a certificate request"),
        (b"", "not a certificate request"),
    ],
    ids=["p384", "rsa", "nobody", "two", "uri-and-dns", "dns", "https", "not-a-csr", "empty"],
)
def test_only_plain_requests_are_signed(der: bytes, reason: str) -> None:
    """One form in, one form out: everything odd is refused before it is interpreted."""
    with pytest.raises(RemoteProtocolError, match=reason):
        check_request(der, WEB)


@pytest.mark.parametrize(
    "names",
    [
        [],
        [x509.DNSName("web.shop")],
        [uri(str(WEB)), uri(str(API))],
        [uri(str(WEB)), uri(str(WEB))],
        [uri(str(WEB) + "\0")],
        [uri(f"{WEB}%00")],
        [uri(str(WEB).upper())],
        [uri(f"{WEB}/")],
        [uri(f"{WEB}?x=1")],
        [uri("spiffe://cluster.local/ns/shop/sa/web\n")],
    ],
    ids=["empty", "dns", "two", "twice", "nul", "percent", "upper", "slash", "query", "newline"],
)
def test_odd_certificates_have_no_identity(names: list[x509.GeneralName]) -> None:
    """Two readings of one certificate would be a way around every policy."""
    with pytest.raises(RemoteProtocolError):
        spiffe_id_of(signed(names=names) if names else signed())


def test_garbage_has_no_identity() -> None:
    """Whatever a peer sends, the worst outcome is a refusal."""
    with pytest.raises(RemoteProtocolError, match="not a certificate"):
        spiffe_id_of(b"\x30\x82nonsense")


def test_an_svid_hides_its_key_and_refuses_a_foreign_answer() -> None:
    """A key in a log is a key for everybody; an answer for another key is of no use."""
    key, request = new_request(WEB)
    authority = Authority(NOW)
    issued = authority.issue(request, WEB, NOW)

    svid = X509Svid.assemble(WEB, key, issued.chain, issued.roots)

    assert "Key" not in repr(svid)
    assert "PRIVATE" not in str(svid)
    assert svid.not_after == issued.not_after
    with pytest.raises(RemoteProtocolError, match="another key"):
        X509Svid.assemble(WEB, new_request(WEB)[0], issued.chain, issued.roots)
    with pytest.raises(RemoteProtocolError, match="asked was"):
        X509Svid.assemble(API, key, issued.chain, issued.roots)
    with pytest.raises(RemoteProtocolError, match="without"):
        X509Svid.assemble(WEB, key, (), issued.roots)
