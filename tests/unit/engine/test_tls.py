"""Who gets a TLS channel, and who is told why not."""

from __future__ import annotations

import os
import pickle
import select
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from ambient.engine.channel import NullReceiver
from ambient.engine.tls import (
    SEND_BYTES,
    Svid,
    TlsChannel,
    TlsContext,
    TlsError,
    accept_tls,
    connect_tls,
    verify_leaf,
    verify_peer,
)
from ambient.errors import ConfigError
from ambient.model.identity import SpiffeId

CLIENT = SpiffeId("cluster.local", "shop", "web")
SERVER = SpiffeId("cluster.local", "shop", "api")


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


def reason(result: object) -> str:
    assert isinstance(result, TlsError), result
    return result.reason


@pytest.fixture
def shake(loop: Any) -> Callable[..., tuple[Any, Any]]:
    """Both sides of a handshake; returns what each was told."""

    def run(client: TlsContext, server: TlsContext, expected: frozenset[SpiffeId] | None = None) -> Any:
        near, far = pair()
        told: dict[str, Any] = {}
        wanted = frozenset((SERVER,)) if expected is None else expected

        def done(side: str, result: Any) -> None:
            told[side] = result
            if isinstance(result, TlsChannel):
                receiver = Remember(told, side)
                result.start(receiver)

        loop.do(lambda: accept_tls(loop.reactor, far, server, lambda result: done("server", result)))
        loop.do(
            lambda: connect_tls(loop.reactor, near, client, wanted, lambda result: done("client", result))
        )
        loop.until(lambda: len(told) >= 2)
        return told

    return run


class Remember(NullReceiver):
    """Notes how a channel ended."""

    def __init__(self, told: dict[str, Any], side: str) -> None:
        self.told, self.side = told, side

    def channel_closed(self, exc: Exception | None) -> None:
        self.told[f"{self.side} closed"] = exc


def close(loop: Any, *channels: Any) -> None:
    for channel in channels:
        if isinstance(channel, TlsChannel):
            loop.do(channel.abort)
    loop.until(lambda: loop.reactor.statistics().descriptors == 0)


def test_both_learn_who_the_other_is(loop: Any, shake: Any, client_svid: Svid, server_svid: Svid) -> None:
    """Identity comes from the certificate and from nowhere else; TLS 1.3, h2, no SNI."""
    told = shake(TlsContext(client_svid, server=False), TlsContext(server_svid, server=True))

    assert told["server"].peer_identity == CLIENT
    assert told["client"].peer_identity == SERVER
    assert told["client"].alpn == "h2"
    assert told["client"]._tls.version() == "TLSv1.3"
    close(loop, told["client"], told["server"])


def test_the_server_must_be_whom_the_route_named(
    loop: Any, shake: Any, client_svid: Svid, server_svid: Svid
) -> None:
    """Any other workload of the mesh has a good certificate too."""
    told = shake(
        TlsContext(client_svid, server=False), TlsContext(server_svid, server=True), frozenset((CLIENT,))
    )

    assert reason(told["client"]) == "wrong_identity"
    close(loop, told["server"])


def test_another_mesh_is_refused_both_ways(loop: Any, shake: Any, mint: Any, server_svid: Svid) -> None:
    """Its chain leads to a root that is not ours."""
    stranger = type(mint)().svid(CLIENT)
    told = shake(TlsContext(stranger, server=False), TlsContext(server_svid, server=True))

    assert reason(told["client"]) == "bad_certificate"
    close(loop, told["server"])


@pytest.fixture
def accept(loop: Any, server_svid: Svid) -> Callable[..., tuple[socket.socket, list[Any]]]:
    """Our server's handshake with whatever the test sends."""

    def run(**more: Any) -> tuple[socket.socket, list[Any]]:
        near, far = pair()
        told: list[Any] = []
        context = TlsContext(server_svid, server=True)
        loop.do(lambda: accept_tls(loop.reactor, far, context, told.append, **more))
        near.settimeout(10)
        return near, told

    return run


def bare_context(svid: Svid | None, folder: Path, roots: tuple[bytes, ...]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=b"".join(roots))
    context.set_alpn_protocols(["h2"])
    if svid is not None:
        path = folder / "svid.pem"
        path.write_bytes(b"".join(ssl.DER_cert_to_PEM_cert(der).encode() for der in svid.chain) + svid.key)
        context.load_cert_chain(path)
    return context


def test_plaintext_is_not_tls(loop: Any, accept: Any) -> None:
    """T1: an HTTP client on the HBONE port gets a close, and the record a word for it."""
    near, told = accept()
    with near:
        near.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        loop.until(lambda: told)
    assert reason(told[0]) == "not_tls"


def test_noise_is_refused(loop: Any, accept: Any) -> None:
    """T2: random bytes."""
    near, told = accept()
    with near:
        near.sendall(os.urandom(4096))
        loop.until(lambda: told)
    assert isinstance(told[0], TlsError)


def test_a_peer_without_a_certificate_is_refused(
    loop: Any, accept: Any, tmp_path: Path, server_svid: Svid
) -> None:
    """T6: mutual means mutual."""
    near, told = accept()
    with near, bare_context(None, tmp_path, server_svid.roots).wrap_socket(near) as tls:
        with pytest.raises(ssl.SSLError):
            tls.recv(1)
        loop.until(lambda: told)
    assert reason(told[0]) == "no_certificate"


@pytest.mark.parametrize("alpn", [[], ["http/1.1"]])
def test_a_peer_that_does_not_speak_h2_is_refused(
    loop: Any, accept: Any, tmp_path: Path, client_svid: Svid, alpn: list[str]
) -> None:
    """T4 and T5: without ALPN anything could follow."""
    near, told = accept()
    context = bare_context(client_svid, tmp_path, client_svid.roots)
    context.set_alpn_protocols(alpn or ["x"])
    with near, suppress(OSError), context.wrap_socket(near) as tls:
        tls.recv(1)
    loop.until(lambda: told)
    assert reason(told[0]) == "no_alpn"


def test_tls_1_2_is_refused(loop: Any, accept: Any, tmp_path: Path, client_svid: Svid) -> None:
    """T3."""
    near, told = accept()
    context = bare_context(client_svid, tmp_path, client_svid.roots)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with near, pytest.raises(ssl.SSLError):
        context.wrap_socket(near)
    loop.until(lambda: told)
    assert isinstance(told[0], TlsError)


def test_a_silent_peer_is_cut(loop: Any, accept: Any) -> None:
    """Slow TLS clients are the cheapest attack there is."""
    near, told = accept(deadline=0.05)
    with near:
        assert near.recv(1) == b""
    loop.until(lambda: told)
    assert reason(told[0]) == "deadline"


def test_a_peer_that_leaves(loop: Any, accept: Any) -> None:
    """A port scan is no error of ours."""
    near, told = accept()
    near.close()
    loop.until(lambda: told)
    assert reason(told[0]) == "closed"


def test_an_endless_handshake_is_cut(loop: Any, accept: Any) -> None:
    """T22: what has not become a handshake by 128 KiB never will."""
    near, told = accept()
    record = b"\x16\x03\x01\x40\x00" + b"\x01\x00\xff\xff\xff" + bytes(16_379)
    with near:
        try:
            for _ in range(40):
                near.sendall(record)
        except OSError:
            pass
        loop.until(lambda: told)
    assert isinstance(told[0], TlsError)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ((), "no_svid"),
        ((("DNS", "x"),), "no_svid"),
        ((("URI", str(CLIENT)), ("URI", str(CLIENT))), "multiple_svids"),
        ((("URI", "https://x"),), "no_svid"),
        ((("URI", f"{CLIENT}\0.evil"),), "no_svid"),
        ((("URI", str(CLIENT).upper()),), "no_svid"),
        ((("URI", "spiffe://other.mesh/ns/a/sa/b"),), "foreign_trust_domain"),
        ((("URI", str(SERVER)),), "wrong_identity"),
    ],
)
def test_who_is_nobody(names: Any, why: str) -> None:
    """T9 to T15: exactly one SPIFFE ID, of our own trust domain, and the expected one."""
    with pytest.raises(TlsError) as caught:
        verify_peer({"subjectAltName": names}, CLIENT, frozenset((CLIENT,)))
    assert caught.value.reason == why


def test_other_names_beside_the_one_do_not_matter() -> None:
    """T13: SPIFFE allows DNS names; nobody of ours reads them."""
    certificate = {"subjectAltName": (("DNS", "x"), ("URI", str(SERVER)))}
    assert verify_peer(certificate, CLIENT, None) == SERVER
    with pytest.raises(TlsError):
        verify_peer(None, CLIENT, None)


def test_a_cas_certificate_is_no_workloads(mint: Any, client_svid: Svid) -> None:
    """T19: whoever may sign others could be anyone."""
    verify_leaf(client_svid.chain[0], client=True)
    for certificate in (*client_svid.roots, b"", b"nonsense"):
        with pytest.raises(TlsError) as caught:
            verify_leaf(certificate, client=True)
        assert caught.value.reason == "bad_certificate"


def test_the_key_shows_nowhere(client_svid: Svid) -> None:
    """Not in a repr, and not in the exception for a chain that does not fit."""
    body = client_svid.key.decode().splitlines()[1]
    assert body not in repr(client_svid)
    assert body not in repr(TlsContext(client_svid, server=False))
    broken = Svid(CLIENT, (b"nonsense",), client_svid.key, client_svid.roots, 0, 1)
    with pytest.raises(ConfigError) as caught:
        TlsContext(broken, server=False)
    assert body not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_session_secrets_are_never_logged(
    loop: Any, shake: Any, client_svid: Svid, server_svid: Svid, tmp_path: Path, monkeypatch: Any
) -> None:
    """SSLKEYLOGFILE in a daemon's environment would undo all of it."""
    path = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(path))
    told = shake(TlsContext(client_svid, server=False), TlsContext(server_svid, server=True))
    close(loop, told["client"], told["server"])

    assert not path.exists()


def test_an_end_of_file_inside_tls(loop: Any, shake: Any, client_svid: Svid, server_svid: Svid) -> None:
    """Both directions end on their own, and then the channel ends without an error."""
    told = shake(TlsContext(client_svid, server=False), TlsContext(server_svid, server=True))

    loop.do(lambda: (told["client"].write(b"bye"), told["client"].write_eof()))
    loop.until(lambda: told["server"].bytes_in == 3 and told["server"]._eof_in)
    assert not told["server"].truncated
    loop.do(told["server"].write_eof)
    loop.until(lambda: "client closed" in told and "server closed" in told)

    assert (told["client closed"], told["server closed"]) == (None, None)
    with pytest.raises(RuntimeError):
        told["client"].detach()


def test_broken_records_end_the_channel(loop: Any, shake: Any, client_svid: Svid, server_svid: Svid) -> None:
    """A record that does not authenticate is an attack or a broken network."""
    told = shake(TlsContext(client_svid, server=False), TlsContext(server_svid, server=True))

    loop.do(lambda: told["client"]._sock.send(b"\x17\x03\x03\x00\x20" + os.urandom(32)))
    loop.until(lambda: "server closed" in told)

    assert isinstance(told["server closed"], TlsError)
    close(loop, told["client"])


class Eager(NullReceiver):
    """Writes as soon as it hears of room."""

    def __init__(self, channel: TlsChannel) -> None:
        self.channel, self.wrote = channel, 0

    def write_ready(self) -> None:
        self.wrote += 1
        self.channel.write(b"B" * 1000)


class Collect(NullReceiver):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.got = bytearray()

    def data_received(self, data: memoryview) -> None:
        self.got += data


def test_what_is_written_at_news_of_room_never_splits_a_large_write(
    loop: Any, client_svid: Svid, server_svid: Svid
) -> None:
    """A large write empties the queue that it finds; whoever waits for that comes after it."""
    near, far = pair()
    made: dict[str, TlsChannel] = {}
    server = TlsContext(server_svid, server=True)
    client = TlsContext(client_svid, server=False)
    loop.do(lambda: accept_tls(loop.reactor, far, server, lambda made_: made.update(server=made_)))
    loop.do(
        lambda: connect_tls(
            loop.reactor, near, client, frozenset((SERVER,)), lambda made_: made.update(client=made_)
        )
    )
    loop.until(lambda: len(made) == 2)
    eager, collect = Eager(made["client"]), Collect()
    written = []

    def crowd() -> None:
        made["client"].start(eager)
        made["server"].start(collect)
        while not made["client"].full:
            made["client"].write(b"A" * SEND_BYTES)
            written.append(SEND_BYTES)
        while (before := len(collect.got)) < sum(written):
            made["server"].on_event(select.EPOLLIN)
            if len(collect.got) == before:
                break
        made["client"].write(b"C" * (4 * SEND_BYTES))

    loop.do(crowd)
    loop.until(lambda: eager.wrote and len(collect.got) == sum(written) + 4 * SEND_BYTES + 1000 * eager.wrote)

    runs = [name for name, _ in groupby(bytes(collect.got))]
    close(loop, made["client"], made["server"])
    assert runs == [*b"ACB"]


def test_an_expired_peer_is_refused(loop: Any, mint: Any, server_svid: Svid, shake: Any) -> None:
    """T7: the certificate's last second is the last."""
    from ambient.pki.request import new_request
    from ambient.pki.svid import X509Svid

    key, request = new_request(CLIENT)
    issued = mint.authority.issue(request, CLIENT, time.time() - 400 * 86_400)
    made = X509Svid.assemble(CLIENT, key, issued.chain, issued.roots)
    old = Svid(CLIENT, made.chain, made.key_pem(), made.roots, made.not_before, made.not_after)

    told = shake(TlsContext(old, server=False), TlsContext(server_svid, server=True))

    assert reason(told["server"]) == "bad_certificate"
    loop.until(lambda: "client closed" in told)
    assert isinstance(told["client closed"], TlsError)


def test_a_svid_is_not_for_pickling_by_accident(client_svid: Svid) -> None:
    """A context has no pickled form, so no cache writes it to a disk."""
    with pytest.raises(TypeError):
        pickle.dumps(TlsContext(client_svid, server=False))
