"""Details that break real meshes, each between enrolled pods with a real ztunnel in between."""

from __future__ import annotations

import dataclasses
import os
import socket
import struct

import pytest
import trio

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns
from ambient.model.workload import Protocol, Workload
from ambient.redirect import backend
from ambient.redirect.plan import Capture
from tests.flow.loopback import LoopbackMesh, echo, info_of, read_all, run_mesh, serving
from tests.lab import DEADLINE, Host, Lab, in_namespaces
from tests.netns.test_ztunnel_capture import connect, enroll, two_pods
from ztunnel import network
from ztunnel.network import NetnsNetwork

IPPROTO_SCTP = 132


async def exchange(pod: Host, ip: str, data: bytes, port: int = 8080) -> bytes:
    """Send *data* and read everything that comes back."""
    stream = await connect(pod, ip, port)
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(data)
            await stream.send_eof()

        nursery.start_soon(send)
        return await read_all(stream)


@pytest.mark.parametrize("version", [4, 6])
@in_namespaces
def test_datagrams_pass_untouched(version: int) -> None:
    """UDP both ways between captured pods, with the addresses of the pods."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        await enroll(mesh, client, "web")
        await enroll(mesh, server, "api")
        near_ip, far_ip = (client.ip, server.ip) if version == 4 else (client.ip6, server.ip6)
        with client.udp(near_ip, 5000) as near, server.udp(far_ip, 15001) as far:
            near.sendto(b"ask", (far_ip, 15001))
            assert far.recvfrom(100)[0] == b"ask"
            far.sendto(b"answer", (near_ip, 5000))
            data, peer = near.recvfrom(100)
            assert (data, peer[:2]) == (b"answer", (far_ip, 15001))
        assert mesh.journal.records == []

    two_pods(body)


@in_namespaces
def test_pings_are_answered_by_the_pod_itself() -> None:
    """ICMP is nobody's connection."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        await enroll(mesh, client, "web")
        await enroll(mesh, server, "api")
        with in_netns(client.netns):
            raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with raw:
            raw.settimeout(DEADLINE)
            head, payload = struct.pack("!BBHHH", 8, 0, 0, 7, 1), b"ping"
            total = sum(struct.unpack(f"!{len(head + payload) // 2}H", head + payload))
            checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
            raw.sendto(struct.pack("!BBHHH", 8, 0, checksum, 7, 1) + payload, (server.ip, 0))
            answer, peer = raw.recvfrom(200)
            assert (peer[0], answer[20], answer[-4:]) == (server.ip, 0, b"ping")

    two_pods(body)


@in_namespaces
def test_sctp_passes_untouched() -> None:
    """Whatever is not TCP: here a packet that only claims to be SCTP, since not every kernel speaks it."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        await enroll(mesh, client, "web")
        await enroll(mesh, server, "api")
        made = []
        for host in (client, server):
            with in_netns(host.netns):
                made.append(socket.socket(socket.AF_INET, socket.SOCK_RAW, IPPROTO_SCTP))
        with made[0] as near, made[1] as far:
            far.settimeout(DEADLINE)
            packet = struct.pack("!HHII", 5000, 8080, 1, 0) + b"init"
            near.sendto(packet, (server.ip, 0))
            data, peer = far.recvfrom(200)
            assert (data[20:], peer[0]) == (packet, client.ip)

    two_pods(body)


@in_namespaces
def test_pods_without_ipv4() -> None:
    """Enrolled, captured both ways, by HBONE over IPv6; the rules ask for no IPv4."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        for pod in (client, server):
            with NetlinkSocket(pod.netns) as nl:
                nl.delete_address("eth0", f"{pod.ip}/32")
        for pod, name in ((client, "web"), (server, "api")):
            await enroll(mesh, dataclasses.replace(pod, ip=pod.ip6), name)
        async with serving(server.listen(8080), echo) as peers:
            assert await exchange(client, server.ip6, b"six") == b"six"
            assert peers[0][0] == client.ip6
        assert {record.error for record in await mesh.records(2)} == {""}

    two_pods(body)


@in_namespaces
def test_small_links() -> None:
    """MTU 1280, the least that IPv6 allows: megabytes arrive, by both families, in both directions."""

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        lab_links = [(pod.netns, "eth0") for pod in (client, server)]
        for netns, link in lab_links:
            with NetlinkSocket(netns) as nl:
                nl.set_link(link, mtu=1280)
        await enroll(mesh, client, "web")
        await enroll(mesh, server, "api")
        data = os.urandom(1 << 20)
        async with serving(server.listen(8080), echo):
            for ip in (server.ip, server.ip6):
                assert await exchange(client, ip, data) == data
        assert {record.error for record in await mesh.records(4)} == {""}

    two_pods(body)


@in_namespaces
def test_a_clients_own_port_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the client's address and port the proxy would reset the client (measured)."""
    # The proxy's ports begin where the clients' are, and the next one is always a live client's.
    monkeypatch.setattr(network.random, "getrandbits", lambda bits: 0)

    async def body(mesh: LoopbackMesh, client: Host, server: Host) -> None:
        await enroll(mesh, server, "api")
        async with serving(server.listen(8080), echo) as peers:
            streams = []
            for port in range(61000, 61032, 2):
                with in_netns(client.netns):
                    sock = trio.socket.socket(socket.AF_INET)
                await sock.bind((client.ip, port))
                await sock.connect((server.ip, 8080))
                streams.append(trio.SocketStream(sock))
            for number, stream in enumerate(streams):
                await stream.send_all(b"%d" % number)
                assert await stream.receive_some() == b"%d" % number
            for stream in streams:
                await stream.aclose()
        assert {ip for ip, _ in peers} == {client.ip}
        assert len({port for _, port in peers}) == 16

    two_pods(body)


SHARED = "10.99.0.5"


def add_address(pod: Host, node: Host, ip: str) -> Host:
    """Give *pod* another address that only its own node routes to it."""
    with NetlinkSocket(pod.netns) as nl:
        nl.add_address("eth0", ip)
    with NetlinkSocket(node.netns) as nl:
        nl.add_route(f"{ip}/32", link=pod.link)
    return dataclasses.replace(pod, ip=ip)


@in_namespaces
def test_two_nodes_may_use_the_same_pod_address() -> None:
    """No cross-talk in capture, registry or pool: each client reaches the pod of its own node."""
    lab = Lab()
    clients = [lab.pod(f"web-{number}", node=number) for number in (1, 2)]
    servers = [
        add_address(lab.pod(f"api-{number}", node=number), lab.node(number), SHARED) for number in (1, 2)
    ]

    async def serve(mesh: LoopbackMesh, pod: Host, node: int) -> Workload:
        made = mesh.workload(pod.name, Protocol.HBONE, addresses=(pod.ip,), node=f"node-{node}")
        await mesh.proxies.add(info_of(made), NetnsNetwork(mesh.reactor, os.dup(pod.netns)))
        backend.install(pod.netns, Capture())
        return made

    def answering(text: bytes) -> object:
        async def answer(stream: trio.SocketStream) -> None:
            await stream.send_all(text + await read_all(stream))

        return answer

    async def test(mesh: LoopbackMesh) -> None:
        for number in (1, 2):
            await serve(mesh, clients[number - 1], number)
            await serve(mesh, servers[number - 1], number)
        one = serving(servers[0].listen(8080), answering(b"one "))  # type: ignore[arg-type]
        two = serving(servers[1].listen(8080), answering(b"two "))  # type: ignore[arg-type]
        async with one as peers_one, two as peers_two:
            for _ in range(3):  # The second and third by a pooled connection.
                assert await exchange(clients[0], SHARED, b"here") == b"one here"
                assert await exchange(clients[1], SHARED, b"here") == b"two here"
            assert {ip for ip, _ in peers_one} == {clients[0].ip}
            assert {ip for ip, _ in peers_two} == {clients[1].ip}
        records = await mesh.records(12)
        met = {(each.source.workload, each.destination.workload) for each in records}
        assert met == {("web-1", "api-1"), ("web-2", "api-2")}

    run_mesh(test, 60)
