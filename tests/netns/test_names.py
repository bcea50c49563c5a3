"""The cluster's name server on a real node, asked by a pod: UDP and TCP, both families."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from ambient.engine.netns import in_netns
from ambient.model.addressing import NETNS
from ambient.redirect.dns_server import DnsServer
from ambient.wire.dns import TYPE_A, TYPE_AAAA, Rcode, encode_query
from tests.lab import DEADLINE, Host, Lab, in_namespaces
from tests.netns.test_vips import SERVICE, VIP, VIP6, mesh_of


def ask_udp(pod: Host, server: str, query: bytes) -> bytes:
    with pod.udp(pod.ip6 if ":" in server else pod.ip) as sock:
        # Connected: an answer from another address than the one asked would never arrive.
        sock.connect((server, 53))
        sock.send(query)
        return sock.recv(512)


def ask_tcp(pod: Host, server: str, query: bytes) -> bytes:
    with pod.connect(server, 53) as sock:
        sock.sendall(struct.pack("!H", len(query)) + query)
        with sock.makefile("rb") as stream:
            return stream.read(struct.unpack("!H", stream.read(2))[0])


@pytest.mark.parametrize("ask", [ask_udp, ask_tcp], ids=["udp", "tcp"])
@pytest.mark.parametrize("server", NETNS.dns, ids=["v4", "v6"])
@in_namespaces
async def test_a_pod_resolves_services(ask: object, server: str) -> None:
    """An address of each family, and a clear no."""
    assert callable(ask)
    lab = Lab()
    pod = lab.pod("web")
    mesh = mesh_of(pod)
    async with trio.open_nursery() as nursery:
        with in_netns(lab.node().netns):
            # Sockets are made at once, before the first checkpoint of the other task: in the node.
            await nursery.start(DnsServer(lambda: mesh).serve, NETNS.dns)

        async def answer(name: str, kind: int) -> bytes:
            with trio.fail_after(DEADLINE):
                return bytes(await trio.to_thread.run_sync(ask, pod, server, encode_query(7, name, kind)))

        assert (await answer(SERVICE.hostname, TYPE_A)).endswith(socket.inet_aton(VIP))
        assert (await answer(SERVICE.hostname, TYPE_AAAA)).endswith(socket.inet_pton(socket.AF_INET6, VIP6))
        nowhere = await answer("nowhere.shop.svc.cluster.local", TYPE_A)
        assert nowhere[3] & 0xF == Rcode.NXDOMAIN
        nursery.cancel_scope.cancel()
