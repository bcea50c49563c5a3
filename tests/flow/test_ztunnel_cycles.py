"""What connections leave behind, however they end: nothing that waits for the garbage collector.

That one looks rarely (``ambient.engine.collector``); a connection that waits for it holds its buffers.
"""

from __future__ import annotations

import gc
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import pytest
import trio

from ambient.model.workload import Workload
from tests.flow.loopback import LoopbackMesh, application, echo, run_mesh, until
from tests.flow.test_ztunnel_path import deny_account

CONNECTIONS = 10


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fails if the block leaves objects of ours in reference cycles."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = Counter(type(each).__qualname__ for each in gc.garbage if _is_ours(each))
        assert not left, str(left)
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def _is_ours(each: object) -> bool:
    return type(each).__module__.startswith(("ambient.", "ztunnel."))


def reset(stream: trio.SocketStream) -> None:
    """Close it with a reset."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def answers_and_resets(stream: trio.SocketStream) -> None:
    """An application that dies."""
    await stream.receive_some()
    reset(stream)


async def answers(stream: trio.SocketStream) -> None:
    """One that reads no further."""
    await stream.receive_some()
    await stream.send_all(b"1")
    await trio.sleep_forever()


async def ends_well(mesh: LoopbackMesh, web: Workload, api: Workload) -> None:
    """As nearly all do."""
    async with application(api, 8080, echo):
        for _ in range(CONNECTIONS):
            async with await mesh.connect(web, (api.addresses[0], 8080)) as stream:
                await stream.send_all(b"1")
                assert await stream.receive_some() == b"1"
                await stream.send_eof()
                assert await stream.receive_some() == b""


async def application_resets(mesh: LoopbackMesh, web: Workload, api: Workload) -> None:
    """The far end of a tunnelled connection."""
    async with application(api, 8080, answers_and_resets):
        for _ in range(CONNECTIONS):
            async with await mesh.connect(web, (api.addresses[0], 8080)) as stream:
                await stream.send_all(b"1")
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()


async def client_resets(mesh: LoopbackMesh, web: Workload, api: Workload) -> None:
    """The near end, with bytes that nobody has read."""
    async with application(api, 8080, answers):
        for _ in range(CONNECTIONS):
            stream = await mesh.connect(web, (api.addresses[0], 8080))
            await stream.send_all(b"1")
            assert await stream.receive_some() == b"1"
            with suppress(trio.TooSlowError), trio.fail_after(0.05):
                await stream.send_all(bytes(10_000_000))
            reset(stream)


async def nobody_listens(mesh: LoopbackMesh, web: Workload, api: Workload) -> None:
    """A CONNECT that is answered with 503."""
    for _ in range(CONNECTIONS):
        async with await mesh.connect(web, (api.addresses[0], 9)) as stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()


@asynccontextmanager
async def carried(mesh: LoopbackMesh, web: Workload, api: Workload) -> AsyncIterator[None]:
    """Connections are open, and the block has them reset."""
    async with application(api, 8080, answers):
        streams = [await mesh.connect(web, (api.addresses[0], 8080)) for _ in range(CONNECTIONS)]
        for stream in streams:
            await stream.send_all(b"1")
            assert await stream.receive_some() == b"1"
        yield
        for stream in streams:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
            await stream.aclose()


async def policy_changes(mesh: LoopbackMesh, web: Workload, api: Workload) -> None:
    """We end it ourselves."""
    async with carried(mesh, web, api):
        mesh.policies(deny_account("web"))


async def tunnel_is_lost(mesh: LoopbackMesh, web: Workload, api: Workload) -> None:
    """The connection that carries them all dies."""
    async with carried(mesh, web, api):
        for tunnel in list(mesh.proxies.tunnels()):
            tunnel.channel.abort()


WAYS = [ends_well, application_resets, client_resets, nobody_listens, policy_changes, tunnel_is_lost]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way.__name__))
def test_a_connection_leaves_nothing_to_collect(way: object) -> None:
    """Reference counts are enough, whoever ended it."""

    async def body(mesh: LoopbackMesh) -> None:
        web, api = mesh.workload("web"), mesh.workload("api")
        for workload in (web, api):
            await mesh.enroll(workload)
        with nothing_left():
            await way(mesh, web, api)  # type: ignore[operator]
            await until(lambda: not any(len(proxy.context.open) for proxy in mesh.proxies.all()))

    run_mesh(body, seconds=60)
