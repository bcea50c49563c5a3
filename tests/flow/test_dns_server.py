"""The name server on a real socket: UDP, TCP, and what it asks of others."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from ambient.model.mesh import Change, Mesh
from ambient.model.service import Service
from ambient.redirect.dns_server import DnsServer
from ambient.wire.dns import TYPE_A, encode_query
from tests.flow.loopback import fresh_ip

# An address of this process alone: a port that is free there by UDP is free by TCP.
HOST = fresh_ip()
WEB = Service(name="web", namespace="shop", hostname="web.shop.svc.cluster.local", addresses=("10.96.0.7",))


def a_mesh() -> Mesh:
    mesh = Mesh()
    mesh.apply(Change(services=(WEB,)))
    return mesh


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


async def ask_udp(port: int, data: bytes) -> bytes:
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, trio.fail_after(10):
        await sock.connect((HOST, port))
        await sock.send(data)
        return bytes(await sock.recv(65535))


async def test_names_are_answered_by_udp_and_tcp() -> None:
    """A resolver uses UDP first and TCP when an answer was cut; both must know the same."""
    port = free_port()
    async with trio.open_nursery() as nursery:
        await nursery.start(DnsServer(a_mesh).serve, [HOST], port)

        by_udp = await ask_udp(port, encode_query(5, "web.shop.svc.cluster.local", TYPE_A))
        stream = await trio.open_tcp_stream(HOST, port)
        question = encode_query(6, "web.shop.svc.cluster.local", TYPE_A)
        await stream.send_all(struct.pack("!H", len(question)) + question)
        with trio.fail_after(10):
            by_tcp = bytes(await stream.receive_some(4096))
        await stream.aclose()
        nursery.cancel_scope.cancel()

    assert by_udp[-4:] == by_tcp[-4:] == socket.inet_aton("10.96.0.7")
    assert (by_udp[:2], by_tcp[2:4]) == (b"\0\5", b"\0\6")


@pytest.mark.parametrize(("upstreams", "rcode"), [((), 3), (("127.0.0.1",), 2)], ids=["nobody", "refuses"])
async def test_other_names_get_a_clear_no(upstreams: tuple[str, ...], rcode: int) -> None:
    """Without anybody to ask a name does not exist; with one who is away the server failed."""
    port = free_port()
    async with trio.open_nursery() as nursery:
        await nursery.start(DnsServer(a_mesh, upstreams).serve, [HOST], port)

        reply = await ask_udp(port, encode_query(5, "example.org", TYPE_A))
        nursery.cancel_scope.cancel()

    assert reply[3] & 0xF == rcode


async def test_garbage_is_ignored_and_service_goes_on() -> None:
    """One broken datagram must not cost anybody else an answer."""
    port = free_port()
    async with trio.open_nursery() as nursery:
        await nursery.start(DnsServer(a_mesh).serve, [HOST], port)
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            await sock.sendto(b"garbage", (HOST, port))

        reply = await ask_udp(port, encode_query(5, "web.shop.svc.cluster.local", TYPE_A))
        nursery.cancel_scope.cancel()

    assert reply[-4:] == socket.inet_aton("10.96.0.7")
