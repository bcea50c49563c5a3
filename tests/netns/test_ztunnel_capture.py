"""ztunnel in real network namespaces, behind real redirection rules."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns
from ambient.model.mesh import Change
from ambient.model.record import Direction, Flag
from ambient.model.workload import Protocol, Workload
from ambient.redirect import backend
from ambient.redirect.plan import Capture
from ambient.wire import nft_encode
from ambient.wire.netlink import NETLINK_NETFILTER
from ambient.wire.nft import L4, Accept, Base, Chain, DestinationPort, Drop, Hook, Syn, Table
from tests.flow.loopback import LoopbackMesh, echo, expect_reset, info_of, read_all, run_mesh, serving, until
from tests.flow.test_ztunnel_path import STRICT, deny_account
from tests.lab import DEADLINE, Host, Lab, in_namespaces
from ztunnel.network import NetnsNetwork

MEGABYTES = 64


async def enroll(mesh: LoopbackMesh, pod: Host, name: str) -> Workload:
    """Make the pod known, serve it, capture it: in the order of a real enrollment."""
    workload = mesh.workload(name, Protocol.TCP, addresses=(pod.ip, pod.ip6))
    await mesh.proxies.add(info_of(workload), NetnsNetwork(mesh.reactor, os.dup(pod.netns)))
    backend.install(pod.netns, Capture())
    enrolled = mesh.mesh.workload(workload.uid)
    assert enrolled is not None
    return advertise(mesh, enrolled, Protocol.HBONE)


def advertise(mesh: LoopbackMesh, workload: Workload, protocol: Protocol) -> Workload:
    changed = dataclasses.replace(workload, protocol=protocol)
    mesh.apply(Change(workloads=(changed,)))
    return changed


async def connect(pod: Host, ip: str, port: int) -> trio.SocketStream:
    with in_netns(pod.netns):
        sock = trio.socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    try:
        with trio.fail_after(10):
            await sock.connect((ip, port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


Body = Callable[[LoopbackMesh, Host, Host], Awaitable[None]]


def two_pods(body: Body) -> None:
    """Run *body* with a client on node 1 and a server on node 2."""
    lab = Lab()
    client, server = lab.pod("web"), lab.pod("api", node=2)

    async def test(mesh: LoopbackMesh) -> None:
        await body(mesh, client, server)

    run_mesh(test, 60)


async def both_captured(mesh: LoopbackMesh, client: Host, server: Host) -> None:
    web, api = await enroll(mesh, client, "web"), await enroll(mesh, server, "api")
    async with serving(server.listen(8080), echo) as peers:
        for ip, source in ((server.ip, client.ip), (server.ip6, client.ip6)):
            stream = await connect(client, ip, 8080)
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"hello"
            assert stream.socket.getpeername()[:2] == (ip, 8080)
            await stream.aclose()
            assert peers.pop()[0] == source
        records = await mesh.records(4)
    assert {record.error for record in records} == {""}
    assert {record.source.identity for record in records} == {web.identity}
    assert {record.destination.identity for record in records} == {api.identity}


@in_namespaces
def test_both_captured_and_the_application_sees_the_client() -> None:
    """By v4 and v6: the tunnel is not to be seen from either end."""
    two_pods(both_captured)


@in_namespaces(rootless=True)
def test_the_same_without_root() -> None:
    """Transparent sockets, marks and foreign source addresses need no root, only a user namespace."""
    two_pods(both_captured)


@in_namespaces
def test_plaintext_from_outside_is_passed_with_its_address_and_refused_by_strict() -> None:
    """PERMISSIVE and STRICT, as the application sees them."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        await enroll(mesh, server, "api")
        async with serving(server.listen(8080), echo) as peers:
            for ip, source in ((server.ip, client.ip), (server.ip6, client.ip6)):
                stream = await connect(client, ip, 8080)
                await stream.send_all(b"plain")
                assert await stream.receive_some() == b"plain"
                await stream.aclose()
                assert peers.pop()[0] == source
            await mesh.records(2)
            mesh.policies(STRICT)
            await expect_reset(connect(client, server.ip, 8080))
            records = await mesh.records(3)
            assert peers == []
        assert records[-1].flag is Flag.DENY
        assert {record.direction for record in records} == {Direction.INBOUND}

    two_pods(body)


@in_namespaces
def test_a_denied_client_reaches_no_application() -> None:
    """Not one byte, not even a connection."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        mesh.policies(deny_account("web"))
        await enroll(mesh, client, "web")
        await enroll(mesh, server, "api")
        async with serving(server.listen(8080), echo) as peers:
            await expect_reset(connect(client, server.ip, 8080))
            await mesh.records(2)
            assert peers == []

    two_pods(body)


@in_namespaces
def test_outside_the_mesh_and_loopback_are_untouched() -> None:
    """An enrolled pod reaches what is not enrolled, and itself, as before."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        await enroll(mesh, client, "web")
        async with serving(server.listen(8080), echo) as peers:
            stream = await connect(client, server.ip, 8080)
            await stream.send_all(b"out")
            assert await stream.receive_some() == b"out"
            await stream.aclose()
            assert peers.pop()[0] == client.ip
            await mesh.records(1)
        async with serving(client.listen(8080), echo) as peers:
            for own in ("127.0.0.1", client.ip):
                stream = await connect(client, own, 8080)
                await stream.send_all(b"me")
                assert await stream.receive_some() == b"me"
                await stream.aclose()
        assert len(mesh.journal.records) == 1

    two_pods(body)


@in_namespaces
def test_sixty_four_megabytes_arrive_byte_for_byte() -> None:
    """Through TPROXY, REDIRECT, TLS and HBONE, with the digest of both ends compared."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        await enroll(mesh, client, "web")
        await enroll(mesh, server, "api")
        block = os.urandom(1 << 20)
        received = hashlib.sha256()

        async def take(stream: trio.SocketStream) -> None:
            async for data in stream:
                received.update(data)
            await stream.send_all(received.digest())

        async with serving(server.listen(8080), take):
            stream = await connect(client, server.ip, 8080)
            for _ in range(MEGABYTES):
                await stream.send_all(block)
            await stream.send_eof()
            answer = await read_all(stream)
            await stream.aclose()
            records = await mesh.records(2)
        assert answer == hashlib.sha256(block * MEGABYTES).digest()
        # Each end counts from where it stands: what the source sent, the destination received.
        assert [record.bytes_received for record in records] == [MEGABYTES << 20, 32]
        assert [record.bytes_sent for record in records] == [32, MEGABYTES << 20]

    two_pods(body)


@in_namespaces
def test_half_close_and_a_server_that_speaks_first() -> None:
    """The two orders that a naive proxy breaks."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        await enroll(mesh, client, "web")
        await enroll(mesh, server, "api")

        async def greet_then_echo(stream: trio.SocketStream) -> None:
            await stream.send_all(b"220 ready\n")
            await stream.send_all(await read_all(stream))

        async with serving(server.listen(25), greet_then_echo):
            stream = await connect(client, server.ip, 25)
            assert await stream.receive_some() == b"220 ready\n"
            await stream.send_all(b"after")
            await stream.send_eof()
            assert await read_all(stream) == b"after"
            await stream.aclose()
            await mesh.records(2)

    two_pods(body)


@in_namespaces
def test_draining_keeps_what_lives_and_new_connections_go_direct() -> None:
    """Un-enroll and enroll again under a live connection: it must not notice."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        web, api = await enroll(mesh, client, "web"), await enroll(mesh, server, "api")
        async with serving(server.listen(8080), echo) as peers:
            live = await connect(client, server.ip, 8080)

            async def still_alive() -> None:
                await live.send_all(b"alive")
                assert await live.receive_some() == b"alive"

            await still_alive()
            for workload, pod in ((api, server), (web, client)):
                advertise(mesh, workload, Protocol.TCP)
                backend.drain(pod.netns)
                await mesh.proxies.remove(workload.uid)
            await still_alive()
            before = len(mesh.journal.records)
            direct = await connect(client, server.ip, 8080)
            await direct.send_all(b"direct")
            assert await direct.receive_some() == b"direct"
            await direct.aclose()
            assert len(mesh.journal.records) == before
            assert peers[-1][0] == client.ip
            assert mesh.drained == []
            await trio.sleep(0.3)  # Not luck: longer than GOAWAY_DELAY.
            await still_alive()
            await live.aclose()
            await mesh.records(2)
            await until(lambda: len(mesh.drained) == 2)
            for pod in (client, server):
                backend.remove(pod.netns)
        assert {record.error for record in mesh.journal.records} == {""}

    two_pods(body)


# What a client says after its SYN is lost, for a while: it has connected, and nobody knows.
SPEECHLESS = Table(
    "speechless",
    (
        Chain(
            "lose",
            ((DestinationPort(L4.TCP, 8080), Syn(), Accept()), (DestinationPort(L4.TCP, 8080), Drop())),
            Base("filter", Hook.OUTPUT, 0),
        ),
    ),
)


@in_namespaces
def test_a_handshake_that_is_half_done_keeps_the_listener_open() -> None:
    """The client believes that it has connected; a listener that closes under it would reset it."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        api = await enroll(mesh, server, "api")
        async with serving(server.listen(8080), echo):
            with NetlinkSocket(client.netns, NETLINK_NETFILTER) as nl:
                nl.transaction(nft_encode.create(SPEECHLESS))
                stream = await connect(client, server.ip, 8080)
                await stream.send_all(b"late")
                async with trio.open_nursery() as nursery:
                    backend.drain(server.netns)
                    nursery.start_soon(mesh.proxies.remove, api.uid)
                    await trio.sleep(0.2)  # Not luck: ten times as long as a listener stays for nobody.
                    nl.transaction(nft_encode.delete(SPEECHLESS.name))
            with trio.fail_after(DEADLINE):
                assert await stream.receive_some() == b"late"
            await stream.aclose()
            (record,) = await mesh.records(1)
            await until(lambda: mesh.drained == [api.uid])
        assert record.error == ""

    two_pods(body)


@in_namespaces
def test_a_handshake_that_is_never_done_keeps_nobody() -> None:
    """Whoever sends SYNs and nothing else must not hold a pod in the mesh."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        api = await enroll(mesh, server, "api")
        with NetlinkSocket(client.netns, NETLINK_NETFILTER) as nl:
            nl.transaction(nft_encode.create(SPEECHLESS))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ztunnel.workload_proxy.LAST_KNOCK_SECONDS", 0.3)
            stream = await connect(client, server.ip, 8080)
            backend.drain(server.netns)
            with trio.fail_after(DEADLINE):
                await mesh.proxies.remove(api.uid)
        await stream.aclose()
        await until(lambda: mesh.drained == [api.uid])

    two_pods(body)


@in_namespaces
def test_a_hundred_short_connections_from_one_client() -> None:
    """Each has a source port of its own, and none meets a port of the client's."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        await enroll(mesh, client, "web")
        await enroll(mesh, server, "api")
        async with serving(server.listen(8080), echo) as peers:
            for number in range(100):
                stream = await connect(client, server.ip, 8080)
                await stream.send_all(b"%d" % number)
                assert await stream.receive_some() == b"%d" % number
                await stream.aclose()
            records = await mesh.records(200)
        assert {record.error for record in records} == {""}
        assert {ip for ip, _ in peers} == {client.ip}
        assert all(port >= 61000 for _, port in peers)

    two_pods(body)
