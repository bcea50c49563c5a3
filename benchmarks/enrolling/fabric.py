"""A mesh of real daemons around bare pods: the supervisor's part, played without a supervisor.

``python -m ambient.control``, and per node an agent and ``python -m ztunnel``, as the fabric starts them. A
pod here is a wired network namespace and nothing else, so that a thousand fit on a small machine.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio

from ambient.engine.netns import in_netns
from ambient.engine.rpc import AdminClient
from ambient.fabric import wiring
from ambient.fabric.nodes import Node, node_environment, zds_path
from ambient.fabric.wiring_plan import POD_SYSCTLS, NodePlan
from benchmarks.enrolling.isolation import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
# Of everything that must happen sooner or later; generous, for loaded machines.
DEADLINE = 60.0

Wire = Callable[[NodePlan, int, int, Sequence[str]], None]


@dataclass(frozen=True, slots=True)
class Pod:
    """A bare pod.

    Attributes:
        netns: Descriptor of its namespace.
    """

    uid: str
    namespace: str
    name: str
    node: str
    netns: int
    addresses: tuple[str, ...]


@dataclass(slots=True)
class Fabric:
    """A running mesh, seen from where its supervisor would stand.

    Attributes:
        desk: Calls of the command line.
        agent: Arguments after ``python`` of the node agents.
        bridged: Whether pods pass their node's IP stack by.
        settings: Of the daemons' environment.
    """

    run_dir: Path
    agent: Sequence[str]
    wire: Wire = wiring.add_pod
    bridged: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    pods: dict[str, Pod] = field(default_factory=dict)
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _desk: AdminClient | None = None
    _arrived: trio.Event = field(default_factory=trio.Event)

    @property
    def desk(self) -> AdminClient:
        """The connection to control."""
        assert self._desk is not None
        return self._desk

    async def call(self, method: str, **params: Any) -> Any:
        """Ask control as the command line would."""
        with trio.fail_after(max(DEADLINE, params.get("timeout", 0.0))):
            return await self.desk.call(method, **params)

    async def apply(self, *objects: Mapping[str, Any], pods: int) -> None:
        """Apply manifests; return when there are *pods* pods."""
        await self.call("apply", objects=[{**each, "origin": "benchmark:1"} for each in objects])
        with trio.fail_after(DEADLINE):
            while len(self.pods) < pods:
                await self._arrived.wait()

    def pod(self, name: str) -> Pod:
        """By name."""
        return self.pods[name]

    def cpu_seconds(self) -> dict[str, float]:
        """What the daemons have used so far, by role."""
        used: dict[str, float] = {}
        for name, process in self.daemons.items():
            role = name.partition("-")[0]
            used[role] = used.get(role, 0.0) + cpu_seconds(process.pid)
        return used

    def _launch(
        self,
        name: str,
        arguments: Sequence[str],
        fd_name: str,
        netns: int | None,
        environment: dict[str, str],
    ) -> socket.socket:
        """Start a daemon and return our end of its line."""
        ours, theirs = socket.socketpair()
        with in_netns(netns), theirs, (self.run_dir / "logs" / f"{name}.log").open("wb") as log:
            self.daemons[name] = subprocess.Popen(
                [sys.executable, "-P", *arguments],
                env={**environment, fd_name: str(theirs.fileno()), "PYTHONPATH": str(ROOT)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        return ours

    async def _node(self, control: AdminClient, plan: NodePlan) -> None:
        node = self.nodes[plan.name] = Node(plan, wiring.add_node(plan, bridged=self.bridged))
        Path(zds_path(str(self.run_dir), plan.name)).parent.mkdir(parents=True)
        environment = node_environment(
            {**_environment(self.run_dir), **self.settings}, str(self.run_dir), plan
        )
        for role, arguments in (("agent", self.agent), ("ztunnel", ("-m", "ztunnel"))):
            with self._launch(
                f"{role}-{plan.name}", arguments, "AMBIENT_CONTROL_FD", node.netns, environment
            ) as end:
                await control.call("attach", fds=[end.fileno()], role=role, node=plan.name, pod="")

    async def _follow(self, control: AdminClient) -> None:
        # Calls whose answers wait behind a thousand unread events would never end: read first.
        send, receive = trio.open_memory_channel[Mapping[str, Any]](math.inf)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._add_all, control, receive)
            async with control.stream("watch_pods") as events:
                async for event in events:
                    if event["type"] == "add":
                        send.send_nowait(event["pod"])

    async def _add_all(
        self, control: AdminClient, orders: trio.MemoryReceiveChannel[Mapping[str, Any]]
    ) -> None:
        async for order in orders:
            await self._add(control, order)

    async def _add(self, control: AdminClient, order: Mapping[str, Any]) -> None:
        node = self.nodes[order["node"]]
        assert node.netns is not None
        netns = wiring.make_netns(POD_SYSCTLS)
        addresses = tuple(order["addresses"])
        self.wire(node.plan, node.netns, netns, addresses)
        pod = Pod(order["uid"], order["namespace"], order["name"], order["node"], netns, addresses)
        path = f"/proc/{os.getpid()}/fd/{netns}"
        await control.call(
            "pod_status", uid=pod.uid, phase="Running", ready=True, pid=os.getpid(), netns=path, containers=[]
        )
        self.pods[pod.name] = pod
        self._arrived.set()
        self._arrived = trio.Event()


@asynccontextmanager
async def fabric(
    run_dir: Path,
    *,
    nodes: int,
    agent: Sequence[str] = ("-m", "ambient.redirect"),
    wire: Wire = wiring.add_pod,
    bridged: bool = False,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[Fabric]:
    """A mesh of *nodes* nodes whose daemons are connected; gone at the end of the block."""
    made = Fabric(run_dir, agent, wire, bridged, settings)
    (run_dir / "logs").mkdir(parents=True)
    wiring.prepare_outer()
    try:
        line = made._launch(
            "control", ("-m", "ambient.control"), "AMBIENT_FABRIC_FD", None, _environment(run_dir)
        )
        async with AdminClient.over(line) as control, trio.open_nursery() as nursery:
            plans = [NodePlan(number) for number in range(1, nodes + 1)]
            with trio.fail_after(DEADLINE):
                await control.call("nodes", names=[plan.name for plan in plans], fabric="netns")
                for plan in plans:
                    await made._node(control, plan)
            nursery.start_soon(made._follow, control)
            async with AdminClient.connect(run_dir / "control.sock") as desk:
                made._desk = desk
                await _connected(made)
                yield made
            nursery.cancel_scope.cancel()
    finally:
        for process in made.daemons.values():
            process.send_signal(signal.SIGKILL)
            process.wait()


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _connected(made: Fabric) -> None:
    """Wait until every daemon has said hello."""
    with trio.fail_after(DEADLINE):
        while True:
            links = (await made.call("status"))["links"]
            if len(links) == len(made.nodes) and all(each["agent"] and each["ztunnel"] for each in links):
                return
            await trio.sleep(0.05)


def _environment(run_dir: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AMBIENT_")}
    return {**kept, "AMBIENT_RUN_DIR": str(run_dir), "CONNECTION_TERMINATION_DEADLINE": "1s"}
