"""T1..T34 of reference/threats.md: TLS and identity on a real :15008.

Where the library gives an alert it is asked for; where it gives none, the connection is closed. The reason
is in the record either way.
"""

from __future__ import annotations

import random
import ssl
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa

from ambient.model.limits import Limits
from ambient.wire import hbone_frames as f
from tests.hostile.forge import CLIENT, CODE, SERVER, Leaf, Signer, chain_pem, uri
from tests.hostile.peers import Door, Wire, client_context
from tests.hostile.records import DATA, HANDSHAKE, KEY_UPDATE, LARGEST_PLAINTEXT, Session
from tests.hostile.scene import Attack, Case, play

WEB = "spiffe://cluster.local/ns/shop/sa/web"
NAMES = (uri(WEB),)
GREETING = f.PREFACE + f.settings(())
BAD = "tls failure: bad_certificate"


def raw(data: bytes) -> Attack:
    """Bytes that are no handshake."""

    def attack(door: Door) -> None:
        with door.knock() as sock:
            sock.sendall(data)
            try:
                while sock.recv(65536):
                    pass
            except ConnectionError:
                pass

    return attack


def shows(make: Callable[[Signer], bytes], *alerts: str) -> Attack:
    """A chain is refused, with one of *alerts* if any is named."""

    def attack(door: Door) -> None:
        alert = door.refuses(client_context(make(door.ca)))
        assert not alerts or not alert or any(each in alert for each in alerts), alert

    return attack


def leaf(alert: str = "", **fields: object) -> Attack:
    """A leaf by the mesh's CA that is wrong in one respect."""
    made = {"names": NAMES} | fields
    return shows(lambda ca: chain_pem(Leaf(**made).signed(ca)), *([alert] if alert else []))  # type: ignore[arg-type]


def served(make: Callable[[Signer], bytes] | None = None, sni: str | None = None) -> Attack:
    """It is let in, and a CONNECT is answered."""

    def attack(door: Door) -> None:
        context = client_context(make(door.ca) if make else door.svid)
        with Wire(door.tls(context, sni)) as wire:
            wire.send(GREETING)
            wire.connect(door.authority)
            assert wire.status() == 200
            wire.send(f.frame(f.DATA, f.END_STREAM, 1))
            wire.finished()

    return attack


def tls12(door: Door) -> None:
    """A client of yesterday."""
    context = client_context(door.svid)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    assert "PROTOCOL_VERSION" in door.refuses(context)


def alpn(*offered: str) -> Attack:
    """A client of another protocol."""

    def attack(door: Door) -> None:
        alert = door.refuses(client_context(door.svid, offered))
        assert alert in ("", "TLSV1_ALERT_NO_APPLICATION_PROTOCOL", "NO_APPLICATION_PROTOCOL"), alert

    return attack


def without_certificate(door: Door) -> None:
    """A client that says nothing of itself."""
    assert "CERTIFICATE_REQUIRED" in door.refuses(client_context(None))


def stolen(door: Door) -> None:
    """The certificate is genuine, the key that signs is not its own."""
    with Session(door) as session:
        session.begin_forged()
        assert session.closed()


def key_updates(door: Door) -> None:
    """Each makes us derive keys, and none says anything."""
    with Session(door) as session:
        session.begin()
        session.send(session.keys.seal(DATA, GREETING))
        for _ in range(100):
            records = []
            for _ in range(100):
                records.append(session.keys.seal(HANDSHAKE, KEY_UPDATE))
                session.keys.update()
            session.send(*records)
        assert session.closed()


def renegotiation(door: Door) -> None:
    """A second ClientHello inside: TLS 1.3 has none."""
    with Session(door) as session:
        session.begin()
        session.send(session.keys.seal(HANDSHAKE, b"\x01\x00\x00\x02\x03\x03"))
        assert session.closed()


def early_data(door: Door) -> None:
    """Data right behind the ClientHello: nobody issued what it would need, and nobody reads it."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(door.svid).wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    raw(outgoing.read() + b"\x17\x03\x03\x00\x40" + bytes(64))(door)


def no_tickets(door: Door) -> None:
    """Nothing to resume with: every connection proves its identity anew."""
    context = client_context(door.svid)
    with Wire(door.tls(context)) as wire:
        wire.send(GREETING)
        wire.alive()
        assert isinstance(wire.sock, ssl.SSLSocket)
        session = wire.sock.session
        assert session is None or not session.has_ticket
    with context.wrap_socket(door.knock(), session=session) as again:
        assert not again.session_reused


def dribble(door: Door) -> None:
    """A handshake byte by byte is not a sign of life."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(door.svid).wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    with door.knock() as sock:
        try:
            for byte in outgoing.read():
                sock.sendall(bytes((byte,)))
                time.sleep(0.02)
        except ConnectionError:
            return
        assert sock.recv(1) == b""


def one_byte_records(door: Door) -> None:
    """Wasteful, and allowed."""
    sock = door.tls()
    with Wire(sock) as wire:
        for byte in GREETING + f.frame(f.PING, 0, 0, b"one byte"):
            sock.sendall(bytes((byte,)))
        wire.until(lambda frame: frame[0] == f.PING)


def largest_record(door: Door) -> None:
    """2^14 bytes and as much padding as there may be: 2^14 + 256 on the wire is the limit."""
    with Session(door) as session:
        session.begin()
        unknown = f.frame(99, 0, 0, bytes(LARGEST_PLAINTEXT - len(GREETING) - 9))
        session.send(session.keys.seal(DATA, GREETING + unknown))
        session.send(session.keys.seal(DATA, f.frame(f.PING, 0, 0, bytes(8)), LARGEST_PLAINTEXT - 17))
        assert session.heard(5)


def record_too_large(door: Door) -> None:
    """One byte over."""
    with Session(door) as session:
        session.begin()
        session.send(session.keys.seal(DATA, bytes(LARGEST_PLAINTEXT + 241)))
        assert session.closed()


def empty_records(door: Door) -> None:
    """Thousands of nothing."""
    with Session(door) as session:
        session.begin()
        session.send(session.keys.seal(DATA, GREETING))
        for _ in range(100):
            session.send(*(session.keys.seal(DATA, b"") for _ in range(100)))
        assert session.closed()


def from_elsewhere(door: Door) -> None:
    """The certificate of a pod whose address this is not; it is let in, and named by its certificate only."""
    elsewhere = replace(door, source=door.elsewhere)
    served()(elsewhere)


def tunnel_in_tunnel(door: Door) -> None:
    """A CONNECT to the tunnel port itself."""
    with door.http2() as wire:
        wire.connect(f"{door.pod}:15008")
        assert wire.status() == 503
        wire.alive()


def intermediate(ca: Signer, **fields: object) -> Signer:
    """Between the root and a leaf."""
    made: dict[str, object] = {"subject": "intermediate", "ca": True, "uses": ()} | fields
    return Leaf(**made).signed(ca)  # type: ignore[arg-type]


def through_another(ca: Signer) -> bytes:
    """The root says that nobody may stand between."""
    above = intermediate(ca)
    return chain_pem(Leaf(NAMES).signed(above), above)


def with_dns_name(ca: Signer) -> bytes:
    """SPIFFE allows other names beside the one URI."""
    return chain_pem(Leaf((*NAMES, x509.DNSName("web"))).signed(ca))


def long_chain(ca: Signer) -> bytes:
    """Ten intermediates."""
    above = [intermediate(ca)]
    for number in range(9):
        above.insert(0, intermediate(above[0], subject=f"intermediate {number}"))
    return chain_pem(Leaf(NAMES).signed(above[0]), *above)


def huge_chain(ca: Signer) -> bytes:
    """Over a megabyte of certificates."""
    wide = Leaf(tuple(uri(f"spiffe://x/{n}/{'y' * 2000}") for n in range(60)), subject="wide").signed(ca)
    return chain_pem(Leaf(NAMES).signed(ca), *([wide] * 10))


def cyclic(ca: Signer) -> bytes:
    """Two that vouch for each other."""
    first = Leaf(subject="a", ca=True, uses=()).signed(None)
    second = Leaf(subject="b", ca=True, uses=()).signed(first)
    crossed = Leaf(subject="a", ca=True, uses=(), key=first.key).signed(second)
    return chain_pem(Leaf(NAMES).signed(crossed), crossed, second)


def by_a_leaf(ca: Signer) -> bytes:
    """A workload that signs others."""
    parent = Leaf(NAMES, subject="leaf").signed(ca)
    return chain_pem(Leaf(NAMES).signed(parent), parent)


def random_bytes() -> bytes:
    """The same at each run; the first byte is of no TLS record."""
    return b"\xff" + random.Random(1).randbytes(65_535)


def twice(ca: Signer) -> bytes:
    """Two extensions of one kind: the builder would not, so an unknown one is renamed in the bytes."""
    name = x509.ObjectIdentifier("2.5.29.99")
    return chain_pem(Leaf(NAMES, extra=((x509.UnrecognizedExtension(name, b"\x05\x00"), True),)).signed(ca))


BAD_URIS = {
    "scheme": "SPIFFE://cluster.local/ns/shop/sa/web",
    "host-upper": "spiffe://CLUSTER.local/ns/shop/sa/web",
    "port": "spiffe://cluster.local:80/ns/shop/sa/web",
    "userinfo": "spiffe://web@cluster.local/ns/shop/sa/web",
    "query": WEB + "?a=b",
    "fragment": WEB + "#a",
    "percent": "spiffe://cluster.local/ns/shop/sa/%41",
    "double-slash": "spiffe://cluster.local/ns//sa/web",
    "dot": "spiffe://cluster.local/./ns/shop/sa/web",
    "dot-dot": "spiffe://cluster.local/ns/../sa/web",
    "trailing-slash": WEB + "/",
    "empty-host": "spiffe:///ns/shop/sa/web",
    "too-long": "spiffe://cluster.local/ns/shop/sa/" + "a" * 2100,
}

# fmt: off
CASES = [
    Case("T1", "plaintext", raw(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"), "tls failure: not_tls"),
    Case("T2", "random", raw(random_bytes()), "tls failure: (not_tls|protocol)"),
    Case("T3", "tls-1.2", tls12, "tls failure: protocol: unsupported protocol"),
    Case("T4", "no-alpn", alpn(), "tls failure: no_alpn"),
    Case("T5", "http-1.1", alpn("http/1.1"), "tls failure: no_alpn"),
    Case("T6", "no-certificate", without_certificate, "tls failure: no_certificate"),
    Case("T7", "expired", leaf("EXPIRED", days=(-3, -1)), f"{BAD}: certificate has expired"),
    Case("T8", "not-yet", leaf("BAD_CERTIFICATE", days=(1, 2)), f"{BAD}: certificate is not yet valid"),
    Case("T9", "trust-domain", leaf(names=(uri("spiffe://other.local/ns/shop/sa/web"),)),
         "tls failure: foreign_trust_domain"),
    Case("T10", "no-san", leaf(names=(), subject="web"), "tls failure: no_svid"),
    Case("T11", "dns-only", leaf(names=(x509.DNSName("web.shop"),)), "tls failure: no_svid"),
    Case("T12", "two-uris", leaf(names=(uri(WEB), uri("spiffe://cluster.local/ns/shop/sa/api"))),
         "tls failure: multiple_svids"),
    Case("T13", "uri-and-dns", served(with_dns_name), None),
    Case("T14", "nul", leaf(names=(uri(WEB + "\0.evil"),)), "tls failure: (no_svid|bad_certificate)"),
    *(Case("T15", name, leaf(names=(uri(text),)), "tls failure: no_svid") for name, text in BAD_URIS.items()),
    Case("T16", "san-not-critical", leaf(critical=False), f"{BAD}: no subject"),
    Case("T17", "server-only", leaf(uses=(SERVER,)), f"{BAD}: un(suitable|supported) certificate purpose"),
    Case("T17", "code-signing", leaf(uses=(CODE,)), f"{BAD}: un(suitable|supported) certificate purpose"),
    Case("T17", "none", leaf(uses=()), f"{BAD}: no extended key usage"),
    Case("T17", "client-only", served(lambda ca: chain_pem(Leaf(NAMES, uses=(CLIENT,)).signed(ca))), None),
    Case("T18", "self-signed", shows(lambda ca: chain_pem(Leaf(NAMES, subject="me").signed(None))),
         f"{BAD}: self"),
    Case("T19", "ca", leaf(ca=True, subject="web"), f"{BAD}: "),
    Case("T19", "may-sign", leaf(signs=True), f"{BAD}: a certificate that may sign others"),
    Case("T20", "by-a-leaf", shows(by_a_leaf), f"{BAD}: (invalid ca|invalid non-ca|path length)"),
    Case("T21", "path-length", shows(through_another), f"{BAD}: path length"),
    Case("T22", "ten", shows(long_chain), f"{BAD}: "),
    Case("T22", "a-megabyte", shows(huge_chain), "tls failure: protocol: (handshake over|excessive)"),
    Case("T22", "cyclic", shows(cyclic), f"{BAD}: "),
    Case("T23", "rsa-1024", leaf(key=lambda: rsa.generate_private_key(65537, 1024)), f"{BAD}: ee .*key too"),
    Case("T23", "p-192", leaf(key=lambda: ec.generate_private_key(ec.SECP192R1())), "tls failure: "),
    Case("T23", "dsa", leaf(key=lambda: dsa.generate_private_key(1024)), "tls failure: "),
    Case("T25", "unknown-critical", shows(twice), f"{BAD}: unhandled critical extension"),
    Case("T26", "stolen", stolen, "tls failure: protocol: bad signature"),
    Case("T27", "key-updates", key_updates, "tls failure: flood: "),
    Case("T27", "renegotiation", renegotiation, "tls failure: protocol: "),
    Case("T28", "early-data", early_data, "tls failure: protocol: "),
    Case("T29", "no-tickets", no_tickets, None),
    Case("T30", "dribble", dribble, "tls failure: deadline: ", limits=Limits(tls_handshake=0.5)),
    Case("T31", "one-byte", one_byte_records, None),
    Case("T31", "largest", largest_record, None),
    Case("T31", "too-large", record_too_large, "tls failure: protocol: "),
    Case("T31", "empty", empty_records, "tls failure: (flood|protocol): "),
    Case("T32", "elsewhere", from_elsewhere, None),
    Case("T33", "garbage-sni", served(sni="no.such.name-at-all.example"), None),
    Case("T33", "address-sni", served(sni="10.0.0.1"), None),
    Case("T34", "tunnel-in-tunnel", tunnel_in_tunnel, "attempted recursive call"),
]
# fmt: on


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_tls(case: Case) -> None:
    """The outcome named, under the oracle."""
    play(case)
