"""A captured pod's name server on real sockets: UDP and TCP, forwarding, bounds, and leaving politely."""

from __future__ import annotations

import dataclasses
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from ambient.errors import Unavailable
from ambient.model.service import Service
from ambient.model.workload import Workload
from ambient.wire.dns import TYPE_A, TYPE_AAAA, Answer, Rcode, encode_answer, encode_query, parse_query
from tests.flow.loopback import (
    LoopbackMesh,
    LoopbackNetwork,
    application,
    echo,
    exchange,
    fresh_ip,
    in_mesh,
    info_of,
    until,
)
from ztunnel import name_server
from ztunnel.name_server import MAX_CLIENTS, MAX_PENDING, NAMES_PORT

SERVER = "192.0.2.53"
Upstream = Callable[[bytes], list[bytes]]


@asynccontextmanager
async def asking(workload: Workload) -> AsyncIterator[trio.socket.SocketType]:
    """A resolver's socket in the pod."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.connect((workload.addresses[0], NAMES_PORT))
        yield sock


async def ask(workload: Workload, query: bytes) -> bytes:
    async with asking(workload) as sock:
        await sock.send(query)
        with trio.fail_after(10):
            return bytes(await sock.recv(65535))


async def receive_message(stream: trio.SocketStream) -> bytes:
    data = b""
    while len(data) < 2 or len(data) < 2 + struct.unpack_from("!H", data)[0]:
        more = await stream.receive_some()
        assert more, "closed before the answer"
        data += more
    return data[2:]


def framed(message: bytes) -> bytes:
    return struct.pack("!H", len(message)) + message


@asynccontextmanager
async def upstream(network: LoopbackNetwork, answers: Upstream, address: str = SERVER) -> AsyncIterator[None]:
    """A name server at *address*, on both protocols, which sends what *answers* makes of each question."""
    ip = fresh_ip()
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        await datagrams.bind((ip, 0))
        network.upstreams[address] = datagrams.getsockname()
        listener = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        await listener.bind(datagrams.getsockname())
        listener.listen(5)

        async def serve_udp() -> None:
            while True:
                query, peer = await datagrams.recvfrom(65535)
                for answer in answers(query):
                    await datagrams.sendto(answer, peer)

        async def serve_tcp(stream: trio.SocketStream) -> None:
            for answer in answers(await receive_message(stream)):
                await stream.send_all(framed(answer))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_udp)
            nursery.start_soon(trio.serve_listeners, serve_tcp, [trio.SocketListener(listener)])
            yield
            nursery.cancel_scope.cancel()


def reply_to(query: bytes, address: str = "198.51.100.7") -> bytes:
    return encode_answer(parse_query(query), Answer(Rcode.NOERROR, (address,)), ttl=60, max_bytes=65535)


async def enrolled(mesh: LoopbackMesh, *servers: str) -> tuple[Workload, LoopbackNetwork, Service]:
    mesh.answer_names(*servers)
    web = mesh.workload("web")
    return web, await mesh.enroll(web), mesh.service("api", 80)


def rcode(answer: bytes) -> int:
    return answer[3] & 0xF


@in_mesh
async def test_a_service_is_found_by_udp_and_tcp(mesh: LoopbackMesh) -> None:
    """Its address, for 30 s; and over TCP several questions of one connection."""
    web, _, api = await enrolled(mesh)
    query = encode_query(7, "api", TYPE_A)

    by_udp = await ask(web, query)
    stream = await trio.open_tcp_stream(web.addresses[0], NAMES_PORT)
    async with stream:
        for piece in (framed(query)[:1], framed(query)[1:9], framed(query)[9:]):
            await stream.send_all(piece)
        by_tcp = await receive_message(stream)
        await stream.send_all(framed(encode_query(8, api.hostname, TYPE_AAAA)))
        empty = await receive_message(stream)

    assert by_udp == by_tcp
    assert by_udp[-4:] == socket.inet_aton(api.addresses[0])
    assert struct.unpack_from("!I", by_udp, len(by_udp) - 10) == (30,)
    assert (rcode(empty), empty[6:8]) == (Rcode.NOERROR, b"\0\0")


@in_mesh
async def test_a_search_domain_is_seen_through(mesh: LoopbackMesh) -> None:
    """One round trip where the resolver reckoned with four: an alias, and the address it leads to."""
    web, _, api = await enrolled(mesh)

    answer = await ask(web, encode_query(7, f"{api.hostname}.shop.svc.cluster.local", TYPE_A))

    assert struct.unpack_from("!HHHHHH", answer) == (7, 0x8580, 1, 2, 0, 0)
    assert b"\x03api\x04shop\x03svc\x07cluster\x05local\0" in answer[12 + 50 :]
    assert answer.endswith(socket.inet_aton(api.addresses[0]))


@in_mesh
async def test_what_the_mesh_does_not_know_is_asked_upstream(mesh: LoopbackMesh) -> None:
    """By the way it came, under a number of our own, and the answer under the application's."""
    web, network, _ = await enrolled(mesh, SERVER)
    asked: list[bytes] = []

    def answers(query: bytes) -> list[bytes]:
        asked.append(query)
        return [reply_to(query)]

    async with upstream(network, answers):
        query = encode_query(7, "example.org", TYPE_A)
        by_udp = await ask(web, query)
        async with await trio.open_tcp_stream(web.addresses[0], NAMES_PORT) as stream:
            await stream.send_all(framed(query))
            by_tcp = await receive_message(stream)

    assert by_udp == by_tcp == reply_to(query)
    assert [each[2:] for each in asked] == [query[2:]] * 2
    text = mesh.around.names.metrics.exposition() if mesh.around.names else ""
    assert text.count('request_query_type="A",request_protocol="udp"') > 0
    assert "istio_dns_upstream_requests_total{" in text
    assert [line[-2:] for line in text.splitlines() if line.startswith("istio_dns_upstream_r")][:2] == [
        " 1",
        " 1",
    ]


@in_mesh
async def test_a_forged_answer_is_not_believed(mesh: LoopbackMesh) -> None:
    """Another number, another question: the right one comes third."""
    web, network, _ = await enrolled(mesh, SERVER)

    def answers(query: bytes) -> list[bytes]:
        other = bytes([query[0] ^ 1]) + query[1:]
        return [reply_to(other, "203.0.113.66"), query, reply_to(query)]

    async with upstream(network, answers):
        answer = await ask(web, encode_query(7, "example.org", TYPE_A))

    assert answer.endswith(socket.inet_aton("198.51.100.7"))


@in_mesh
async def test_the_second_server_is_asked_when_the_first_is_not_there(mesh: LoopbackMesh) -> None:
    """At once if the kernel says so."""
    web, network, _ = await enrolled(mesh, "192.0.2.1", SERVER)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind((fresh_ip(), 0))
        network.upstreams["192.0.2.1"] = nobody.getsockname()
    async with upstream(network, lambda query: [reply_to(query)]):
        answer = await ask(web, encode_query(7, "example.org", TYPE_A))

    assert rcode(answer) == Rcode.NOERROR


@in_mesh
async def test_a_silent_upstream_ends_in_servfail(mesh: LoopbackMesh) -> None:
    """By both ways, and nothing is left of it."""
    web, network, _ = await enrolled(mesh, SERVER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ztunnel.forwarding.FORWARD_SECONDS", 0.05)
        async with upstream(network, lambda query: []):
            query = encode_query(7, "example.org", TYPE_A)
            by_udp = await ask(web, query)
            async with await trio.open_tcp_stream(web.addresses[0], NAMES_PORT) as stream:
                await stream.send_all(framed(query))
                by_tcp = await receive_message(stream)

    assert rcode(by_udp) == rcode(by_tcp) == Rcode.SERVFAIL
    assert mesh.around.names is not None
    assert mesh.around.names.pending == 0


@in_mesh
async def test_no_upstream_at_all_is_servfail_and_an_update_not_implemented(mesh: LoopbackMesh) -> None:
    """An answer at once, of whatever kind, lets the application go on."""
    web, _, _ = await enrolled(mesh)

    assert rcode(await ask(web, encode_query(7, "example.org", TYPE_A))) == Rcode.SERVFAIL
    update = struct.pack("!HHHHHH", 7, 5 << 11, 1, 0, 0, 0) + encode_query(7, "a.b", 6)[12:]
    assert rcode(await ask(web, update)) == Rcode.NOTIMP


@in_mesh
async def test_questions_under_way_are_bounded(mesh: LoopbackMesh) -> None:
    """Over the bound they are refused at once, and garbage gets no answer."""
    web, network, _ = await enrolled(mesh, SERVER)
    query = encode_query(7, "example.org", TYPE_A)
    async with upstream(network, lambda query: []), asking(web) as sock:
        await sock.send(b"garbage")
        for _ in range(MAX_PENDING):
            await sock.send(query)
        await until(lambda: mesh.around.names and mesh.around.names.pending == MAX_PENDING)
        await sock.send(query)
        with trio.fail_after(4):
            assert rcode(await sock.recv(512)) == Rcode.SERVFAIL


@in_mesh
async def test_connections_are_bounded_and_nonsense_ends_one(mesh: LoopbackMesh) -> None:
    """One over the bound is closed; a broken message resets its connection."""
    web, _, _ = await enrolled(mesh)
    async with trio.open_nursery() as nursery:
        streams = [await trio.open_tcp_stream(web.addresses[0], NAMES_PORT) for _ in range(MAX_CLIENTS + 1)]
        assert await streams[-1].receive_some() == b""
        for stream, sent in ((streams[0], framed(b"nonsense")), (streams[1], b"\xff\xff")):
            await stream.send_all(sent)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        for stream in streams:
            nursery.start_soon(stream.aclose)


@in_mesh
async def test_a_lookup_under_way_is_answered_while_the_pod_leaves(mesh: LoopbackMesh) -> None:
    """The rules are gone, the question was asked before; then the port is free."""
    web, network, api = await enrolled(mesh, SERVER)
    held: list[bytes] = []
    async with upstream(network, lambda query: [reply_to(query)] if held else held.append(query) or []):
        async with asking(web) as sock, trio.open_nursery() as nursery:
            await sock.send(encode_query(7, "example.org", TYPE_A))
            await until(lambda: held)
            nursery.start_soon(mesh.proxies.remove, web.uid)
            await until(lambda: mesh.proxies.is_draining(web.uid))
            # conntrack still brings this socket's packets here.
            await sock.send(encode_query(8, api.hostname, TYPE_A))
            with trio.fail_after(10):
                assert (await sock.recv(512)).endswith(socket.inet_aton(api.addresses[0]))
                assert rcode(await sock.recv(512)) == Rcode.SERVFAIL
        await until(lambda: mesh.drained == [web.uid])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind((web.addresses[0], NAMES_PORT))


@in_mesh
async def test_lookups_are_answered_for_as_long_as_the_pod_drains(mesh: LoopbackMesh) -> None:
    """A download may take hours, and until it ends conntrack brings lookups that get an old one's ports."""
    web, _, api = await enrolled(mesh)
    other = mesh.workload("other")
    await mesh.enroll(other)
    with pytest.MonkeyPatch.context() as quickly:
        quickly.setattr(name_server, "QUIET_SECONDS", 0.01)
        async with application(other, 8080, echo):
            download = await mesh.connect(web, (other.addresses[0], 8080))
            await exchange(download, b"before")
            await mesh.proxies.remove(web.uid)
            await trio.sleep(0.2)  # Not luck: long after nobody has asked for a while.

            assert rcode(await ask(web, encode_query(7, api.hostname, TYPE_A))) == Rcode.NOERROR

            await download.aclose()
            await until(lambda: mesh.drained == [web.uid])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind((web.addresses[0], NAMES_PORT))


@in_mesh
async def test_without_lookups_leaving_waits_for_nobody(mesh: LoopbackMesh) -> None:
    """A pod that asked nothing is drained as fast as ever."""
    web, _, _ = await enrolled(mesh)
    await mesh.proxies.remove(web.uid)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind((web.addresses[0], NAMES_PORT))
    await until(lambda: mesh.drained == [web.uid])


@in_mesh
async def test_captured_lookups_that_nobody_would_answer_are_refused(mesh: LoopbackMesh) -> None:
    """ISTIO_META_DNS_CAPTURE=false here, and the agent does not know: better not enrolled than deaf."""
    web = mesh.workload("web")
    network = LoopbackNetwork(mesh.reactor, web.addresses[0], {})
    with pytest.raises(Unavailable, match="ISTIO_META_DNS_CAPTURE"):
        await mesh.proxies.add(dataclasses.replace(info_of(web), dns_capture=True), network)
    assert network.closed
