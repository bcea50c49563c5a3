"""The node agent killed at random points of enrollments and releases; the kernel compared with the truth.

Used by ``test_agent_kills.py`` (a few times) and ``benchmarks/agent_kills.py`` (as often as asked).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import trio

from ambient.engine.netns import in_netns
from ambient.engine.privileges import NODE_DAEMON, keep_only
from ambient.redirect import backend, evidence, sockets
from ambient.redirect.backend import Standing
from ambient.redirect.plan import Capture
from ambient.wire.xds import NodePod
from tests.lab import DEADLINE, Host, Lab
from tests.netns.test_agent import FakeControl, FakeZtunnel

# An enrollment takes some 30 ms here, a release some 40: the kill falls before, in and after them.
LONGEST_DELAY = 0.08


class Process:
    """One life of ``python -m ambient.redirect``."""

    def __init__(self, node: Host, path: str, nursery: trio.Nursery) -> None:
        self.control = FakeControl()
        environment = {
            **os.environ,
            "NODE_NAME": "node-1",
            "INPOD_UDS": path,
            "AMBIENT_CONTROL_FD": str(self.control.theirs.fileno()),
        }
        with in_netns(node.netns), self.control.theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ambient.redirect"],
                env=environment,
                pass_fds=[self.control.theirs.fileno()],
                stderr=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
            )
        nursery.start_soon(self._follow)

    async def _follow(self) -> None:
        with suppress(OSError):  # It is killed.
            await self.control.run()

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


class Scene:
    """One pod, a ztunnel that outlives every agent, and a connection that is older than all of them."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        lab = Lab()
        self.node, self.pod, peer = lab.node(), lab.pod("web"), lab.pod("peer")
        self.path = str(directory / "zds.sock")
        self.nursery = nursery
        self.ztunnel = FakeZtunnel(self.path, obedient=True)
        self.wanted = NodePod(
            uid="web",
            namespace="shop",
            name="web-1",
            service_account="web",
            addresses=(self.pod.ip, self.pod.ip6),
            netns=self.pod.netns_path,
            mode="ambient",
        )
        self._listener = peer.listen(80)
        self.near = self.pod.connect(peer.ip, 80)
        self.far, _ = self._listener.accept()
        # An agent looks at those who have no more power than itself: this process plays its ztunnel.
        keep_only(NODE_DAEMON)

    async def agent(self) -> Process:
        """A new one, with the ztunnel connected to it."""
        Path(self.path).unlink(missing_ok=True)
        made = Process(self.node, self.path, self.nursery)
        with trio.fail_after(DEADLINE):
            await made.control.greeted.wait()
            while not os.path.exists(self.path):  # noqa: ASYNC110 (another process makes it)
                await trio.sleep(0.005)
        self.nursery.start_soon(self.ztunnel.again)
        return made

    def name(self, wanted: bool) -> NodePod:
        return self.wanted if wanted else replace(self.wanted, mode="none")

    def check_never_cut_off(self) -> Standing:
        """At any moment: rules lead to listeners, and what is older than them lives."""
        now = backend.standing(self.pod.netns)
        assert now is not Standing.DAMAGED
        if now is Standing.CAPTURED:
            assert len(sockets.listeners(self.pod.netns)) == len(sockets.PROXY_PORTS)
        self.near.sendall(b"?")
        assert self.far.recv(1) == b"?"
        return now

    def is_as(self, wanted: bool) -> bool:
        """Whether the kernel has all of an enrolled pod, or nothing at all."""
        netns = self.pod.netns
        listening = len(sockets.listeners(netns))
        if wanted:
            return evidence.RuleReader().stand(netns, Capture()) and listening == len(sockets.PROXY_PORTS)
        nothing = backend.standing(netns) is Standing.NONE and not evidence.routing_left_over(netns)
        return nothing and not listening


@asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    async with trio.open_nursery() as nursery:
        made = Scene(nursery, directory)
        try:
            yield made
        finally:
            nursery.cancel_scope.cancel()


async def run(directory: Path, kills: int, seed: int) -> Counter[str]:
    """Kill so many agents; returns how often each standing was found right after a kill."""
    chance = random.Random(seed)
    found: Counter[str] = Counter()
    async with scene(directory) as it:
        for number in range(kills):
            wanted = number % 2 == 0
            agent = await it.agent()
            await agent.control.name(it.name(wanted))
            await trio.sleep(chance.uniform(0, LONGEST_DELAY))
            agent.kill()
            found[it.check_never_cut_off().name] += 1
            # Its successor brings the pod to where it should be, whatever the first one left.
            successor = await it.agent()
            await successor.control.name(it.name(wanted))
            try:
                with trio.fail_after(DEADLINE):
                    while not it.is_as(wanted):  # noqa: ASYNC110 (the kernel tells nobody)
                        await trio.sleep(0.01)
            except trio.TooSlowError as exc:
                state = backend.standing(it.pod.netns), evidence.routing_left_over(it.pod.netns)
                raise AssertionError(f"kill {number} of seed {seed}: wanted {wanted}, found {state}") from exc
            finally:
                successor.kill()
            it.check_never_cut_off()
    return found
