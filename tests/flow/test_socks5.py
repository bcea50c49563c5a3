"""The SOCKS5 entry: into the mesh by the same way as a captured connection."""

from __future__ import annotations

import pytest
import trio

from ambient.model.record import Direction, Flag
from ambient.model.route import SOCKS_PORT
from ambient.model.workload import Workload
from ambient.wire.socks5 import Reply, reply
from tests.flow.loopback import LoopbackMesh, application, echo, in_mesh, read_all
from tests.flow.test_ztunnel_path import deny_account


async def entered(workload: Workload, request: bytes) -> trio.SocketStream:
    """A client of the pod after its request; the first answer is read."""
    stream = await trio.open_tcp_stream(workload.addresses[0], SOCKS_PORT)
    await stream.send_all(b"\x05\x01\x00" + request)
    assert await exactly(stream, 2) == b"\x05\x00"
    return stream


async def exactly(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    with trio.fail_after(10):
        while len(data) < count:
            more = await stream.receive_some(count - len(data))
            assert more
            data += more
    return data


def named(name: str, port: int = 80) -> bytes:
    return b"\x05\x01\x00\x03" + bytes([len(name)]) + name.encode() + port.to_bytes(2, "big")


async def shop(mesh: LoopbackMesh) -> tuple[Workload, Workload]:
    mesh.around.socks = True
    service = mesh.service("api", 80)
    web, api = mesh.workload("web"), mesh.workload("api", services={service.key: {80: 8080}})
    await mesh.enroll(web)
    await mesh.enroll(api)
    return web, api


@in_mesh
async def test_by_name_through_the_tunnel(mesh: LoopbackMesh) -> None:
    """What the client sends early is not lost, and both records are there as ever."""
    web, api = await shop(mesh)
    async with application(api, 8080, echo):
        async with await entered(web, named("api") + b"early ") as stream:
            assert await exactly(stream, 10) == reply(Reply.SUCCEEDED)
            await stream.send_all(b"bytes")
            await stream.send_eof()
            assert await read_all(stream) == b"early bytes"
        inbound, outbound = await mesh.records(2)

    assert inbound.source.identity == web.identity
    assert (outbound.direction, outbound.error) == (Direction.OUTBOUND, "")
    assert outbound.service == "api.shop.svc.cluster.local"
    assert outbound.bytes_sent == len(b"early bytes")


@in_mesh
async def test_a_refusal_is_said_in_socks_and_recorded(mesh: LoopbackMesh) -> None:
    """By policy, and for a name that nobody has."""
    web, _api = await shop(mesh)
    mesh.policies(deny_account("web"))

    async with await entered(web, named("api")) as stream:
        assert await exactly(stream, 10) == reply(Reply.NOT_ALLOWED)
        assert await stream.receive_some() == b""
    async with await entered(web, named("nobody.example")) as stream:
        assert await exactly(stream, 10) == reply(Reply.HOST_UNREACHABLE)
    records = await mesh.records(3)

    assert [record.flag for record in records].count(Flag.DENY) == 2
    assert [record.error for record in records if "name" in record.error] == [
        "no address of that name in the mesh"
    ]


@in_mesh
async def test_nonsense_is_cut_and_silence_too(mesh: LoopbackMesh) -> None:
    """Neither costs more than its handshake."""
    web, _api = await shop(mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ztunnel.socks5.HANDSHAKE_SECONDS", 0.05)
        for sent in (b"GET / HTTP/1.1\r\n\r\n", b"", b"\x05\x01"):
            stream = await trio.open_tcp_stream(web.addresses[0], SOCKS_PORT)
            async with stream:
                if sent:
                    await stream.send_all(sent)
                with trio.fail_after(10):
                    try:
                        assert await stream.receive_some() == b""
                    except trio.BrokenResourceError:
                        pass  # Closed over what it had not read: a reset.


@in_mesh
async def test_it_is_closed_unless_it_was_asked_for(mesh: LoopbackMesh) -> None:
    """A door that nobody wants stays shut."""
    web = mesh.workload("web")
    await mesh.enroll(web)
    with pytest.raises(OSError):
        await trio.open_tcp_stream(web.addresses[0], SOCKS_PORT)
