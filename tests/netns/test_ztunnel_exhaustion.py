"""A real ztunnel that runs short of descriptors or memory: it refuses, says so, and comes back by itself."""

from __future__ import annotations

import dataclasses
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeAlias

import pytest
import trio

from ambient.engine.headroom import TIGHT_SHARE
from ambient.model.mesh import Change, Mesh
from ambient.model.workload import Protocol
from ambient.pki.authority import Authority
from ambient.redirect import backend
from ambient.redirect.plan import Capture
from tests.flow.loopback import echo, serving, until
from tests.lab import DEADLINE, Host, Lab, in_namespaces
from tests.netns.test_ztunnel_capture import connect
from tests.netns.test_ztunnel_process import Ztunnel, workload, ztunnel

DESCRIPTORS = 256
# More than fit, fewer than two listeners' queues.
WANTED = 300
# Issue: from the end of the load until whoever comes is served.
RECOVERY_SECONDS = 5.0
# Streams whose reader reads nothing, with more than they may buffer; and what of that fits below the limit.
STALLED, STALLED_BYTES, ROOM_BYTES = 250, 400_000, 4 * 1024 * 1024
STALLED_PORT = 8081


@dataclasses.dataclass
class Scene:
    """A client behind a ztunnel, a server behind another."""

    client: Host
    server: Host
    near: Ztunnel
    far: Ztunnel

    async def served(self, seconds: float = 5.0) -> trio.SocketStream | None:
        """A connection that has answered; None if it is refused or only waits."""
        stream = None
        try:
            with trio.move_on_after(seconds):
                stream = await connect(self.client, self.server.ip, 8080)
                await stream.send_all(b"x")
                if await stream.receive_some() == b"x":
                    return stream
        except OSError:
            pass
        except trio.BrokenResourceError:
            pass
        if stream is not None:
            await trio.aclose_forcefully(stream)
        return None

    async def fill(self) -> list[trio.SocketStream]:
        """As many at once as ask; returns those that are served."""
        open_now: list[trio.SocketStream] = []

        async def one() -> None:
            stream = await self.served()
            if stream is not None:
                open_now.append(stream)

        async with trio.open_nursery() as nursery:
            for _ in range(WANTED):
                nursery.start_soon(one)
        return open_now


Stage: TypeAlias = tuple[Lab, tuple[Host, Host]]


def make_stage() -> Stage:
    """Two nodes with a pod each."""
    lab = Lab()
    return lab, (lab.pod("web"), lab.pod("api", node=2))


@asynccontextmanager
async def scene(
    path: Path, stage: Stage | None = None, *, near: int = 0, far: int = 0, **environment: str
) -> AsyncIterator[Scene]:
    lab, pods = stage or make_stage()
    web, api = (workload(pod) for pod in pods)
    mesh, authority = Mesh(), Authority(time.time())
    mesh.apply(Change(workloads=(web, api)))
    async with (
        ztunnel(path, lab.node(1), mesh, authority, descriptors=near) as first,
        ztunnel(path, lab.node(2), mesh, authority, descriptors=far, **environment) as second,
    ):
        for each, pod, known in ((first, pods[0], web), (second, pods[1], api)):
            assert await each.agent.add(known, pod.netns) == ""
            assert await each.agent.snapshot_sent() == ""
            backend.install(pod.netns, Capture())
        enrolled = tuple(dataclasses.replace(each, protocol=Protocol.HBONE) for each in (web, api))
        for each in (first, second):
            await each.control.tell(Change(workloads=enrolled))
            await each.control.told()
        async with serving(pods[1].listen(8080), echo):
            yield Scene(*pods, first, second)


async def recovered(it: Scene) -> float:
    """Seconds until whoever comes is served; the caller has just taken the load away.

    How long that one takes is the machine's affair; those who are refused hear so at once.
    """
    relieved = time.monotonic()
    with trio.fail_after(DEADLINE):
        while True:
            began = time.monotonic()
            if (stream := await it.served()) is not None:
                await stream.aclose()
                return began - relieved


async def busy_share(it: Scene, victim: Ztunnel, knocks: int = 6) -> float:
    """How much of a processor *victim* takes while it refuses everybody who comes, at leisure."""
    spent, at = cpu_seconds(victim), time.monotonic()
    assert [await it.served(0.3) for _ in range(knocks)] == [None] * knocks
    return (cpu_seconds(victim) - spent) / (time.monotonic() - at)


def resident_bytes(one: Ztunnel) -> int:
    """Its memory, as it sees it."""
    pages = int(Path(f"/proc/{one.process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def refusals(one: Ztunnel) -> list[str]:
    return [line for line in one.log.read_text().splitlines() if "refused new work" in line]


def cpu_seconds(one: Ztunnel) -> float:
    """Of the process, from its own clock (clock_getcpuclockid(3))."""
    return time.clock_gettime((~one.process.pid << 3) | 2)


@pytest.mark.parametrize("side", ["source", "destination"])
@in_namespaces
async def test_out_of_descriptors_it_refuses_and_recovers(tmp_path: Path, side: str) -> None:
    """With ``ulimit -n 256``: what is open goes on, what is too much hears no, and nothing spins."""
    limits = {"near": DESCRIPTORS} if side == "source" else {"far": DESCRIPTORS}
    async with scene(tmp_path, **limits) as it:
        victim = it.near if side == "source" else it.far
        began = time.monotonic()
        open_now = await it.fill()

        assert 100 < len(open_now) < DESCRIPTORS
        assert victim.process.poll() is None
        for stream in open_now[::20]:
            await stream.send_all(b"still")
            assert await stream.receive_some() == b"still"
        assert await busy_share(it, victim) < 0.5, "a loop around accept would take all of a processor"
        # Still looked into: metrics and readiness have descriptors of their own.
        assert "ready" in await victim.get(15021, "/healthz/ready")

        for stream in open_now[: len(open_now) // 2]:
            await stream.aclose()
        assert await recovered(it) < RECOVERY_SECONDS
        lines = refusals(victim)
        assert 1 <= len(lines) <= time.monotonic() - began + 1
        assert "Traceback" not in victim.log.read_text()
        for stream in open_now:
            await trio.aclose_forcefully(stream)


@in_namespaces
async def test_at_its_memory_limit_it_refuses_streams_and_goes_on(tmp_path: Path) -> None:
    """A limit below what the process takes at rest: every new CONNECT hears 503, and it is still there."""
    async with scene(tmp_path, AMBIENT_MEMORY_LIMIT="8Mi") as it:
        assert await it.served(1.0) is None

        await until(lambda: bool(refusals(it.far)))
        assert "short of memory" in refusals(it.far)[0]
        assert it.far.process.poll() is None
        assert "ready" in await it.far.get(15021, "/healthz/ready")


async def never(stream: trio.SocketStream) -> None:
    """An application that reads nothing."""
    await trio.sleep_forever()


@in_namespaces
async def test_over_its_memory_limit_it_refuses_and_recovers(tmp_path: Path) -> None:
    """Stalled streams take it there: new ones hear no, others go on; when they have gone, all is well."""
    stage = make_stage()
    for name in ("rest", "load"):
        (tmp_path / name).mkdir()
    async with scene(tmp_path / "rest", stage) as it:
        assert await it.served() is not None
        at_rest = resident_bytes(it.far)
    # New work is refused from TIGHT_SHARE on, so that is where the room ends.
    limit = int((at_rest + ROOM_BYTES) / TIGHT_SHARE)
    async with scene(tmp_path / "load", stage, AMBIENT_MEMORY_LIMIT=str(limit)) as it:
        began = time.monotonic()
        first = await it.served()
        assert first is not None
        listener = it.server.listen(STALLED_PORT)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # Its connections inherit it.
        async with serving(listener, never), trio.open_nursery() as load:
            for _ in range(STALLED):
                load.start_soon(stalled, it)
            with trio.fail_after(DEADLINE):
                while not refusals(it.far):
                    if (stream := await it.served()) is not None:
                        await stream.aclose()
            assert await busy_share(it, it.far) < 0.5
            await first.send_all(b"still")
            assert await first.receive_some() == b"still"
            load.cancel_scope.cancel()
        took = await recovered(it)
        lines = refusals(it.far)
        assert took < RECOVERY_SECONDS
        assert all("short of memory" in line for line in lines)
        assert 1 <= len(lines) <= time.monotonic() - began + 1
        assert "Traceback" not in it.far.log.read_text()
        await first.aclose()


async def stalled(it: Scene) -> None:
    """One that sends as much as it can, until cancelled."""
    with suppress(OSError, trio.BrokenResourceError):
        async with await connect(it.client, it.server.ip, STALLED_PORT) as stream:
            await stream.send_all(bytes(STALLED_BYTES))
            await trio.sleep_forever()
