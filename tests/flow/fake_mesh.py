"""Everything around a control plane, played in one process: supervisor, agents, ztunnels, proxies.

They keep the contracts of the wires: a daemon acks what it applied, an agent reports what it was told, a
supervisor starts what it is told and says when it is ready. Tests look at what was said, in order.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from ambient.control.bell import Bell
from ambient.control.cluster import Cluster
from ambient.control.distribution import Peer
from ambient.control.service import make_cluster, serve
from ambient.engine.rpc import AdminClient
from ambient.errors import Unavailable
from ambient.model.identity import SpiffeId
from ambient.model.manifest import parse_manifests
from ambient.model.mesh import Mesh
from ambient.model.workload import Protocol
from ambient.pki.request import new_request
from ambient.pki.svid import X509Svid
from ambient.wire.xds import (
    CertificateRefused,
    Certified,
    DaemonEnd,
    Extra,
    NodePod,
    PodReport,
    PodsNamed,
    Updated,
)

WAIT_SECONDS = 5.0


@dataclass
class FakeDaemon:
    """A daemon that applies what it is told, and says so unless it is *stuck*."""

    peer: Peer
    stream: trio.SocketStream
    end: DaemonEnd = field(default_factory=DaemonEnd)
    mesh: Mesh = field(default_factory=Mesh)
    pods: tuple[NodePod, ...] = ()
    broken: dict[str, str] = field(default_factory=dict)
    stuck: bool = False
    snapshots: int = 0
    log: list[str] = field(default_factory=list)
    answers: dict[int, Certified | CertificateRefused] = field(default_factory=dict)
    _held: list[int] = field(default_factory=list)
    _states: dict[str, str] = field(default_factory=dict)
    _lock: trio.Lock = field(default_factory=trio.Lock)
    _news: Bell = field(default_factory=Bell)

    async def run(self) -> None:
        """Live until control or the test closes the connection."""
        try:
            async with self.stream:
                await self.send(self.end.hello())
                async for data in self.stream:
                    for event in self.end.receive_data(bytes(data)):
                        await self._take(event)
                    self._news.ring()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async def send(self, data: bytes) -> None:
        async with self._lock:
            await self.stream.send_all(data)

    async def _take(self, event: object) -> None:
        match event:
            case Updated(nonce, change):
                self.snapshots += change.snapshot
                self.mesh.apply(change)
                self.log += [f"{each.name} {each.protocol.value}" for each in change.workloads]
                await self._ack(nonce)
            case PodsNamed(nonce, pods):
                self.pods = pods
                await self._ack(nonce)
                await self._follow(pods)
            case Extra({"kind": "survey", "id": number, "uid": uid}):
                answer = {"rules": "table inet ambient {}", "standing": "none", "note": ""}
                answer |= {"blocker": self.broken.get(uid.rpartition("/")[2].partition("#")[0], "")}
                answer |= {"established": 1, "connections": ["10.244.1.2:80 - 10.244.1.3:40112"]}
                await self.send(self.end.extra("surveyed", id=number, **answer))
            case Certified(number) | CertificateRefused(number):
                self.answers[number] = event  # type: ignore[assignment]

    async def _ack(self, nonce: int) -> None:
        if self.stuck:
            self._held.append(nonce)
        else:
            await self.send(self.end.ack(nonce))

    async def release(self) -> None:
        """Ack everything that was held back."""
        self.stuck = False
        while self._held:
            await self.send(self.end.ack(self._held.pop(0)))

    async def _follow(self, pods: tuple[NodePod, ...]) -> None:
        """The agent's part: do as told, and report."""
        for pod in pods:
            before = self._states.get(pod.uid, "none")
            if pod.mode == before:
                continue
            self._states[pod.uid] = pod.mode
            if pod.mode == "ambient" and pod.name in self.broken:
                self.log.append(f"fail {pod.name}")
                report = PodReport(pod=pod.uid, state="failed", reason=self.broken[pod.name])
            elif pod.mode == "ambient":
                self.log.append(f"capture {pod.name}")
                report = PodReport(pod=pod.uid, state="enrolled", established_kept=3, duration_ms=1.5)
            else:
                self.log.append(f"release {pod.name}")
                report = PodReport(pod=pod.uid, state="draining")
            await self.send(self.end.report(report))
            if report.state == "draining":
                await self.send(self.end.report(PodReport(pod=pod.uid, state="none")))

    async def ask(self, identity: SpiffeId, number: int = 1) -> X509Svid | str:
        """Ask for a certificate; return it, or why not."""
        key, request = new_request(identity)
        await self.send(self.end.csr(number, identity, request))
        with trio.fail_after(WAIT_SECONDS):
            await self._news.until(lambda: number in self.answers)
        answer = self.answers.pop(number)
        if isinstance(answer, CertificateRefused):
            return answer.error
        return X509Svid.assemble(identity, key, answer.chain, answer.roots)

    def protocols(self) -> dict[str, Protocol]:
        """Name of the workload -> protocol, as this daemon knows it."""
        return {each.name: each.protocol for each in self.mesh.workloads()}


class FakeFabric:
    """A supervisor: starts pods at once (unless *holding*), with proxies where they are asked for."""

    def __init__(self, client: AdminClient, nursery: trio.Nursery) -> None:
        self.client = client
        self.nursery = nursery
        self.daemons: dict[str, FakeDaemon] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.log: list[str] = []
        self.holding = False
        self.news = Bell()

    async def attach(self, role: str, node: str = "", pod: str = "") -> FakeDaemon:
        """Make a daemon and hand its other end to control."""
        ours, theirs = socket.socketpair()
        with theirs:
            await self.client.call("attach", fds=[theirs.fileno()], role=role, node=node, pod=pod)
        peer = Peer(role, node, pod)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        daemon = self.daemons[str(peer)] = FakeDaemon(peer, stream)
        self.nursery.start_soon(daemon.run)
        return daemon

    async def watch(self) -> None:
        """Do what the events say, as long as control is there."""
        with suppress(Unavailable):
            async with self.client.stream("watch_pods") as events:
                async for event in events:
                    await self._obey(event)

    async def _obey(self, event: dict[str, Any]) -> None:
        pod = event["pod"]
        self.log.append(f"{event['type']} {pod['name']} {pod['mode']}")
        if event["type"] == "remove":
            del self.pods[pod["uid"]]
            await self._stop_proxy(pod["uid"])
        else:
            self.pods[pod["uid"]] = pod
            await self._start(pod)
        self.news.ring()

    async def _start(self, pod: dict[str, Any]) -> None:
        role = "waypoint" if pod["role"] == "waypoint" else "sidecar" if pod["mode"] == "sidecar" else ""
        if role:
            await self.attach(role, pod["node"], pod["uid"])
        if not self.holding:
            await self.status(pod["uid"], ready=True)

    async def _stop_proxy(self, uid: str) -> None:
        for name in (f"waypoint/{uid}", f"sidecar/{uid}"):
            if daemon := self.daemons.pop(name, None):
                await daemon.stream.aclose()

    async def status(self, uid: str, *, ready: bool, phase: str = "Running") -> None:
        """Say where a pod stands."""
        netns = f"/proc/{abs(hash(uid)) % 30000}/ns/net"
        await self.client.call("pod_status", uid=uid, phase=phase, ready=ready, pid=4711, netns=netns)


@dataclass
class FakeMesh:
    """A control plane with everything around it, and a desk to ask from."""

    cluster: Cluster
    fabric: FakeFabric
    desk: AdminClient

    async def apply(self, text: str) -> list[dict[str, str]]:
        """Apply a manifest; return what happened to each object."""
        parsed = parse_manifests([("test.yaml", text)])
        objects = [{**each.body, "origin": each.origin} for each in parsed.objects]
        result = await self.desk.call("apply", objects=objects)
        return list(result["objects"])

    async def enroll(self, *names: str, mode: str = "ambient", **options: Any) -> dict[str, Any]:
        """Enroll ``namespace`` or ``namespace/pod``."""
        targets = [
            {"kind": "pod" if slash else "namespace", "namespace": space, "name": pod or space}
            for space, slash, pod in (name.partition("/") for name in names)
        ]
        return dict(
            await self.desk.call("enroll", targets=targets, mode=mode, **{"timeout": WAIT_SECONDS, **options})
        )

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true of the cluster."""
        with trio.fail_after(WAIT_SECONDS):
            await self.cluster.bell.until(condition)

    async def fabric_until(self, condition: Callable[[], bool]) -> None:
        """Wait for something to become true of what the supervisor runs."""
        with trio.fail_after(WAIT_SECONDS):
            await self.fabric.news.until(condition)

    async def ready(self) -> None:
        """Wait until every pod is ready and everybody knows."""
        cluster = self.cluster
        await self.until(lambda: bool(cluster.pods()) and all(pod.ready for pod in cluster.pods()))
        with trio.fail_after(WAIT_SECONDS):
            assert await cluster.distribution.settled(cluster.registry().version) == ()

    def ztunnel(self, node: str) -> FakeDaemon:
        return self.fabric.daemons[f"ztunnel/{node}"]

    def agent(self, node: str) -> FakeDaemon:
        return self.fabric.daemons[f"agent/{node}"]


@asynccontextmanager
async def fake_mesh(nodes: int = 2) -> AsyncIterator[FakeMesh]:
    """A mesh of *nodes* nodes without any object yet."""
    cluster = make_cluster()
    near, far = socket.socketpair()
    desk_near, desk_far = socket.socketpair()
    names = [f"node-{number}" for number in range(1, nodes + 1)]
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, cluster, far, desk_far)
        async with AdminClient.over(near) as supervisor, AdminClient.over(desk_near) as desk:
            fabric = FakeFabric(supervisor, nursery)
            await supervisor.call("nodes", names=names)
            for name in names:
                await fabric.attach("agent", name)
                await fabric.attach("ztunnel", name)
            nursery.start_soon(fabric.watch)
            yield FakeMesh(cluster, fabric, desk)
            nursery.cancel_scope.cancel()
