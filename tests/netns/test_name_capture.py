"""Lookups of a captured pod in real network namespaces: rules, both families, UDP and TCP."""

from __future__ import annotations

import os
import socket
from collections.abc import Awaitable, Callable

import pytest
import trio

from ambient.engine.netns import in_netns
from ambient.model.addressing import NETNS
from ambient.model.mesh import Change
from ambient.model.service import Service
from ambient.model.workload import Protocol, Workload
from ambient.redirect import backend
from ambient.redirect.dns_server import DnsServer
from ambient.redirect.plan import Capture
from ambient.wire.dns import TYPE_A, TYPE_AAAA, Rcode, encode_query
from tests.flow.loopback import LoopbackMesh, info_of, run_mesh, until
from tests.lab import DEADLINE, Host, Lab, in_namespaces, make_netns
from tests.netns.test_names import ask_tcp, ask_udp
from tests.netns.test_vips import SERVICE, VIP, mesh_of
from ztunnel.network import NAME_HOSTS, NetnsNetwork, name_sockets

# Known to ztunnel alone: who gives its address has asked ztunnel.
ONLY_HERE = Service(
    name="api",
    namespace="shop",
    hostname="api.shop.svc.cluster.local",
    addresses=("10.96.77.7", "fd00:10:96::77"),
)


async def enroll(mesh: LoopbackMesh, pod: Host, *, dns: bool = True) -> Workload:
    workload = mesh.workload("web", Protocol.TCP, addresses=(pod.ip, pod.ip6))
    mesh.apply(Change(services=(ONLY_HERE,)))
    await mesh.proxies.add(info_of(workload), NetnsNetwork(mesh.reactor, os.dup(pod.netns)))
    backend.install(pod.netns, Capture(dns=dns))
    return workload


async def lookup(ask: Callable[[Host, str, bytes], bytes], pod: Host, server: str, query: bytes) -> bytes:
    with trio.fail_after(DEADLINE):
        return bytes(await trio.to_thread.run_sync(ask, pod, server, query, abandon_on_cancel=True))


def one_pod(body: Callable[[LoopbackMesh, Host], Awaitable[None]]) -> None:
    """Run *body* with a pod, and the cluster's name server on its node, which knows ``SERVICE``."""
    lab = Lab()
    pod = lab.pod("web")

    async def test(mesh: LoopbackMesh) -> None:
        mesh.answer_names(*NETNS.dns)
        clusters = mesh_of(pod)
        async with trio.open_nursery() as nursery:
            with in_netns(lab.node().netns):
                # Sockets are made at once, before the first checkpoint of the other task: in the node.
                await nursery.start(DnsServer(lambda: clusters).serve, NETNS.dns)
            await body(mesh, pod)
            nursery.cancel_scope.cancel()

    run_mesh(test, 60)


async def captured(mesh: LoopbackMesh, pod: Host) -> None:
    await enroll(mesh, pod)
    for server in NETNS.dns:
        for ask in (ask_udp, ask_tcp):
            four = await lookup(ask, pod, server, encode_query(7, ONLY_HERE.hostname, TYPE_A))
            assert four.endswith(socket.inet_aton(ONLY_HERE.addresses[0]))
            six = await lookup(ask, pod, server, encode_query(8, ONLY_HERE.hostname, TYPE_AAAA))
            assert six.endswith(socket.inet_pton(socket.AF_INET6, ONLY_HERE.addresses[1]))
            # The one below is not in ztunnel's mesh: asked of the node's server, from inside the pod.
            forwarded = await lookup(ask, pod, server, encode_query(9, SERVICE.hostname, TYPE_A))
            assert forwarded[:2] == b"\0\x09"
            assert forwarded.endswith(socket.inet_aton(VIP))
    # An address that nobody serves: captured all the same.
    nobody = await lookup(ask_udp, pod, "203.0.113.53", encode_query(7, ONLY_HERE.hostname, TYPE_A))
    assert nobody.endswith(socket.inet_aton(ONLY_HERE.addresses[0]))


@in_namespaces
def test_lookups_are_answered_by_ztunnel_and_forwarded_from_the_pod() -> None:
    """UDP and TCP, v4 and v6: the answer comes from whom the pod asked, as far as it can see."""
    one_pod(captured)


@in_namespaces(rootless=True)
def test_the_same_without_root() -> None:
    """A user namespace is enough."""
    one_pod(captured)


@in_namespaces
def test_capture_can_be_off_for_a_pod_and_is_switched_without_a_lost_lookup() -> None:
    """ambient.istio.io/dns-capture: "false", set and taken back on a pod that asks all the time."""

    async def body(mesh: LoopbackMesh, pod: Host) -> None:
        await enroll(mesh, pod, dns=False)
        query = encode_query(7, SERVICE.hostname, TYPE_A)
        own = encode_query(7, ONLY_HERE.hostname, TYPE_A)
        assert (await lookup(ask_udp, pod, NETNS.dns[0], own))[3] & 0xF == Rcode.NXDOMAIN
        answers: list[bytes] = []
        stop = False

        async def ask_on() -> None:
            while not stop:
                answers.append(await lookup(ask_udp, pod, NETNS.dns[0], query))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask_on)
            for dns in (True, False) * 5:
                count = len(answers)
                backend.install(pod.netns, Capture(dns=dns))
                await until(lambda count=count: len(answers) > count + 5)
            stop = True
        assert len(answers) > 50
        assert all(answer.endswith(socket.inet_aton(VIP)) for answer in answers)

    one_pod(body)


@in_namespaces
def test_releasing_a_pod_loses_no_lookup() -> None:
    """Sockets that were captured go on being answered, new ones go to the node's server."""

    async def body(mesh: LoopbackMesh, pod: Host) -> None:
        web = await enroll(mesh, pod)
        with pod.udp(pod.ip) as old:
            old.connect((NETNS.dns[0], 53))
            own = encode_query(7, ONLY_HERE.hostname, TYPE_A)
            old.send(own)
            assert await trio.to_thread.run_sync(old.recv, 512)
            async with trio.open_nursery() as nursery:
                backend.drain(pod.netns)
                nursery.start_soon(mesh.proxies.remove, web.uid)
                await until(lambda: mesh.proxies.is_draining(web.uid))
                old.send(own)
                reply = await trio.to_thread.run_sync(old.recv, 512)
                assert reply.endswith(socket.inet_aton(ONLY_HERE.addresses[0]))
                fresh = await lookup(ask_udp, pod, NETNS.dns[0], own)
                assert fresh[3] & 0xF == Rcode.NXDOMAIN
        await until(lambda: mesh.drained == [web.uid])
        backend.remove(pod.netns)
        found = await lookup(ask_udp, pod, NETNS.dns[0], encode_query(7, SERVICE.hostname, TYPE_A))
        assert found.endswith(socket.inet_aton(VIP))

    one_pod(body)


@in_namespaces
def test_a_pod_without_ipv6_is_answered_by_v4() -> None:
    """What its namespace lacks is left out; what is taken is an error, and leaves nothing open."""
    netns = make_netns({"net/ipv6/conf/all/disable_ipv6": "1"})
    made = name_sockets(netns, NAME_HOSTS, 15053)
    assert [pair[0].family for pair in made] == [socket.AF_INET]
    # Another process's, which does not share.
    with in_netns(netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 15054))
        with pytest.raises(OSError, match="in use"):
            name_sockets(netns, NAME_HOSTS, 15054)
    for pair in made:
        for sock in pair:
            sock.close()
