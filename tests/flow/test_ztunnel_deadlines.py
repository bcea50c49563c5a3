"""Nobody waits for ever: each deadline of ``Limits`` ends what it is for, and leaves its record."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import trio

from ambient.model.limits import Limits
from ambient.model.record import Flag
from ambient.wire.hbone_frames import DEFAULT_WINDOW, INITIAL_WINDOW_SIZE, MAX_WINDOW, window_update
from tests.flow.loopback import LoopbackMesh, application, echo, expect_reset, fresh_ip, in_mesh, run_mesh
from tests.hostile.peers import Door, load_pem, pem_of
from tests.hostile.scene import patiently, scene_of

# Far longer than any of the short ones below: what ends after the short one was ended by it.
LONG = 60.0


def limits(**short: float) -> Limits:
    """All long, but for *short*."""
    every = dict.fromkeys(("tls_handshake", "connect_answer", "dial", "first_connect"), LONG)
    return Limits(**(every | {"ping_interval": LONG, "user_timeout": LONG} | short))  # type: ignore[arg-type]


@contextmanager
def full_queue() -> Iterator[tuple[str, int]]:
    """An address that answers no SYN."""
    ip = fresh_ip()
    with socket.create_server((ip, 15008), backlog=0) as listener, socket.create_connection((ip, 15008)):
        yield listener.getsockname()


@pytest.mark.parametrize(
    ("short", "error", "flag"),
    [
        ({"dial": 0.2}, "maybe a NetworkPolicy is blocking HBONE port 15008", Flag.NETWORK_POLICY),
        ({"tls_handshake": 0.2}, "tls failure: deadline: no TLS handshake within 0.2 s", Flag.TLS_FAILURE),
    ],
    ids=["dial", "handshake"],
)
def test_a_destination_that_says_nothing(short: dict[str, float], error: str, flag: Flag) -> None:
    """The application hears of it after the deadline of whatever did not come."""

    async def body(mesh: LoopbackMesh) -> None:
        mesh.reactor.limits = limits(**short)
        web = mesh.workload("web")
        await mesh.enroll(web)
        with full_queue() as (full, _), socket.create_server((fresh_ip(), 15008)) as silent:
            ip = full if "dial" in short else silent.getsockname()[0]
            api = mesh.workload("api", addresses=(ip,))
            await expect_reset(mesh.connect(web, (api.addresses[0], 8080)))
            (record,) = await mesh.records(1)
        assert error in record.error
        assert record.flag is flag

    run_mesh(body)


@in_mesh
async def test_a_connect_that_is_not_answered(mesh: LoopbackMesh) -> None:
    """A peer that shakes hands and then sleeps."""
    mesh.reactor.limits = limits(connect_answer=0.2)
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.set_alpn_protocols(["h2"])
    load_pem(server, pem_of(await mesh.svids.get(api.identity)))

    def sleepy(listener: socket.socket) -> None:
        near, _ = listener.accept()
        with suppress(OSError), server.wrap_socket(near, server_side=True) as tls:
            while tls.recv(65536):
                pass

    with socket.create_server((api.addresses[0], 15008)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, sleepy, listener)
            await expect_reset(mesh.connect(web, (api.addresses[0], 8080)))
            (record,) = await mesh.records(1)
            mesh.proxies.all()[0].abort("over")
    assert "no answer to CONNECT within 0.2 s" in record.error


@in_mesh
async def test_only_tunnels_have_a_user_timeout(mesh: LoopbackMesh) -> None:
    """On an application's socket it would kill a reader that merely pauses."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    async with application(api, 8080, echo):
        stream = await mesh.connect(web, (api.addresses[0], 8080))
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"
        found = user_timeouts()
        await stream.send_eof()
        await stream.aclose()
    tunnels = [timeout for ports, timeout in found if 15008 in ports]
    others = [timeout for ports, timeout in found if 15008 not in ports]
    assert tunnels == [15_000, 15_000]
    assert len(others) >= 4
    assert set(others) == {0}


def user_timeouts() -> list[tuple[set[int], int]]:
    """(ports, TCP_USER_TIMEOUT) of every connected TCP socket of this process."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError), socket.socket(fileno=os.dup(int(name))) as sock:
            if sock.family != socket.AF_INET:
                continue
            ports = {sock.getsockname()[1], sock.getpeername()[1]}
            found.append((ports, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)))
    return found


def test_a_peer_that_takes_nothing_is_found() -> None:
    """It acknowledges window probes for ever, and a PING would wait in the same queue."""
    over = threading.Event()

    def never_read(door: Door) -> None:
        with door.http2((INITIAL_WINDOW_SIZE, MAX_WINDOW)) as wire:
            wire.send(window_update(0, MAX_WINDOW - DEFAULT_WINDOW))
            wire.connect(f"{door.pod}:8081")
            over.wait(30)

    async def pour(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(bytes(65_536))

    async def body(mesh: LoopbackMesh) -> None:
        async with scene_of(mesh, limits(user_timeout=0.5)) as scene, application(scene.api, 8081, pour):
            door = await scene.door()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, never_read, door)
                await patiently(scene.refusals, "nobody noticed")
                await patiently(lambda: scene.held()[:2] == (1, 1), "not given back")
                over.set()
            (record,) = scene.refusals()
            assert "timed out" in record.error
            await scene.neighbour_is_served()

    run_mesh(body, seconds=60)
