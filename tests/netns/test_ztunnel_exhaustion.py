"""A real ztunnel that runs short of descriptors or memory: it refuses, says so, and comes back by itself."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

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


@asynccontextmanager
async def scene(path: Path, *, near: int = 0, far: int = 0, **environment: str) -> AsyncIterator[Scene]:
    lab = Lab()
    pods = lab.pod("web"), lab.pod("api", node=2)
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
        spent, at = cpu_seconds(victim), time.monotonic()
        waiting = [await it.served(0.3) for _ in range(6)]
        share = (cpu_seconds(victim) - spent) / (time.monotonic() - at)
        assert waiting == [None] * 6
        assert share < 0.5, "a loop around accept would take all of a processor"
        # Still looked into: metrics and readiness have descriptors of their own.
        assert "ready" in await victim.get(15021, "/healthz/ready")

        for stream in open_now[: len(open_now) // 2]:
            await stream.aclose()
        with trio.fail_after(DEADLINE):
            while (stream := await it.served()) is None:
                pass
        await stream.aclose()
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
