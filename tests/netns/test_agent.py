"""The node agent in real namespaces, between a control and a ztunnel that only write down what they hear."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from ambient.engine.netns import listen_in
from ambient.model.mesh import Change
from ambient.redirect import backend, zds_server
from ambient.redirect.agent import Agent, Settings
from ambient.redirect.backend import Standing
from ambient.redirect.plan import Capture, drain_plan
from ambient.redirect.sockets import PROXY_PORTS
from ambient.wire.xds import ControlEnd, Extra, Greeted, NodePod, PodReport, PodReported
from ambient.wire.zds import SnapshotSent, WorkloadAdded, WorkloadRemoved, ZtunnelConnection, ZtunnelEvent
from tests.lab import DEADLINE, Lab, in_namespaces

EMPTY = Change(snapshot=True)


class FakeControl:
    """Control's end of the distribution wire: the mesh it is given, and the pods it is told to name."""

    def __init__(self, mesh: Change = EMPTY) -> None:
        self._mesh = mesh
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(ours)
        self._end = ControlEnd()
        self.greeted = trio.Event()
        self.reports: list[PodReport] = []
        self.attestations: list[Mapping[str, Any]] = []
        self._heard = trio.Event()

    async def run(self) -> None:
        while data := await self._sock.recv(65536):
            for event in self._end.receive_data(data):
                if isinstance(event, Greeted):
                    await self._send(self._end.update(self._mesh))
                    self.greeted.set()
                if isinstance(event, Extra) and event.frame.get("kind") == "attestation":
                    self.attestations.append(event.frame)
                if isinstance(event, PodReported):
                    self.reports.append(event.report)
                    self._heard.set()
                    self._heard = trio.Event()

    async def _send(self, made: tuple[int, bytes]) -> None:
        await self._sock.send(made[1])

    async def name(self, *pods: NodePod) -> None:
        await self.greeted.wait()
        await self._send(self._end.pods(pods))

    def plaintext(self) -> Mapping[str, int] | None:
        """Connections older than their pods' enrollment, as the agent said last."""
        return self.attestations[-1]["plaintext"] if self.attestations else None

    async def report(self, count: int) -> PodReport:
        """The report number *count*, from 1, when it has come."""
        with trio.fail_after(DEADLINE):
            while len(self.reports) < count:
                await self._heard.wait()
        return self.reports[count - 1]


class FakeZtunnel:
    """The other end of ZDS; it listens, accepts nothing. *before_ack* may look around, refuse by a text."""

    def __init__(self, path: str, *, obedient: bool = False) -> None:
        self._path = path
        # Whether it lets go of what its agent does not name, and says at once that nothing is left of it.
        self._obedient = obedient
        self.events: list[str] = []
        self.before_ack: Callable[[ZtunnelEvent], str] = lambda event: ""
        self.listeners: dict[str, list[socket.socket]] = {}
        self._wire = ZtunnelConnection()
        self._sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self._sock.connect(self._path)
        await self._sock.send(self._wire.hello())
        with self._sock, suppress(trio.ClosedResourceError, BrokenPipeError):
            while True:
                data, ancillary, _, _ = await self._sock.recvmsg(4097, 256)
                fds = [int.from_bytes(raw[:4], "little") for _, _, raw in ancillary]
                if not data:
                    return
                event = self._wire.receive_packet(data, fds)
                self.events.append(_brief(event))
                error = self.before_ack(event) or self._obey(event, fds)
                for fd in fds:
                    os.close(fd)
                await self._sock.send(self._wire.ack(error))
                if self._obedient and isinstance(event, WorkloadRemoved):
                    await self.drained(event.uid)
                if self.events[-1] == "snapshot":
                    task_status.started()

    def _obey(self, event: ZtunnelEvent, fds: list[int]) -> str:
        try:
            match event:
                case WorkloadAdded(workload) if workload.uid not in self.listeners:
                    made = [listen_in(fds[0], port, transparent=True) for port in PROXY_PORTS]
                    self.listeners[workload.uid] = made
                case WorkloadRemoved(uid):
                    self.stop_listening(uid)
                case SnapshotSent(uids) if self._obedient:
                    for uid in self.listeners.keys() - uids:
                        self.stop_listening(uid)
        except OSError as exc:
            return str(exc)
        return ""

    def stop_listening(self, uid: str) -> None:
        for each in self.listeners.pop(uid, ()):
            each.close()

    async def again(self) -> None:
        """Follow the next agent until it ends; what is served goes on."""
        self._wire = ZtunnelConnection()
        self._sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with suppress(OSError):
            await self.run()

    def close(self) -> None:
        """Crash: its sockets go with it."""
        self._sock.close()
        for uid in list(self.listeners):
            self.stop_listening(uid)

    async def drained(self, uid: str) -> None:
        await self._sock.send(self._wire.drained(uid))


def _brief(event: ZtunnelEvent) -> str:
    match event:
        case WorkloadAdded(workload):
            return f"add {workload.uid}"
        case WorkloadRemoved(uid):
            return f"del {uid}"
        case _:
            return "snapshot"


class Scene:
    """An agent, its control, a ztunnel and two pods; the first is the one that is captured."""

    def __init__(self, nursery: trio.Nursery, directory: Path) -> None:
        lab = Lab()
        self.pod, self.peer = lab.pod("web"), lab.pod("peer")
        self.nursery = nursery
        self.path = str(directory / "zds.sock")
        self.wanted = NodePod(
            uid="web",
            namespace="shop",
            name="web-1",
            service_account="web",
            addresses=(self.pod.ip, self.pod.ip6),
            netns=self.pod.netns_path,
            mode="ambient",
        )
        self.unwanted = replace(self.wanted, mode="none")

    async def start_agent(self, mesh: Change = EMPTY) -> FakeControl:
        """A new agent, as after a crash of the last; returns its control."""
        control = FakeControl(mesh)
        self.agent = await self.nursery.start(self._run_agent, control)
        self.nursery.start_soon(control.run)
        return control

    async def _run_agent(
        self, control: FakeControl, *, task_status: trio.TaskStatus[trio.CancelScope]
    ) -> None:
        settings = Settings(node="node-1", zds_path=self.path, dns_addresses=(), services=False)
        with trio.CancelScope() as scope:
            task_status.started(scope)
            await Agent(settings, control.theirs).run()

    async def start_ztunnel(self) -> FakeZtunnel:
        with trio.fail_after(DEADLINE):
            while not os.path.exists(self.path):  # noqa: ASYNC110 (made by the agent, which tells nobody)
                await trio.sleep(0.005)
        ztunnel = FakeZtunnel(self.path)
        self.nursery.start_soon(partial(ztunnel.run))
        return ztunnel

    def standing(self) -> Standing:
        return backend.standing(self.pod.netns)


@asynccontextmanager
async def scene(directory: Path) -> AsyncIterator[Scene]:
    async with trio.open_nursery() as nursery:
        yield Scene(nursery, directory)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def enrolled(
    directory: Path, mesh: Change = EMPTY
) -> AsyncIterator[tuple[Scene, FakeControl, FakeZtunnel]]:
    async with scene(directory) as made:
        control, ztunnel = await made.start_agent(mesh), await made.start_ztunnel()
        await control.name(made.wanted)
        assert (await control.report(1)).state == "enrolled"
        yield made, control, ztunnel


async def wait_for(condition: Callable[[], bool]) -> None:
    with trio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110 (conditions of the kernel's and of other tasks)
            await trio.sleep(0.005)


@in_namespaces
async def test_listeners_come_before_rules_and_the_established_are_counted(tmp_path: Path) -> None:
    """The order that loses no connection; what was open stays open."""
    async with scene(tmp_path) as it:
        with it.peer.listen(80) as listener, it.pod.connect(it.peer.ip, 80) as near:
            far, _ = listener.accept()
            control, ztunnel = await it.start_agent(), await it.start_ztunnel()
            seen: list[Standing] = []
            ztunnel.before_ack = lambda event: seen.append(it.standing()) or ""
            await control.name(it.wanted)

            report = await control.report(1)

            assert (report.state, report.established_kept) == ("enrolled", 1)
            assert report.duration_ms > 0
            assert ztunnel.events == ["snapshot", "add web"]
            assert set(seen) == {Standing.NONE}
            assert it.standing() is Standing.CAPTURED
            with far:
                near.sendall(b"still here")
                assert far.recv(16) == b"still here"


@in_namespaces
async def test_asking_again_changes_nothing(tmp_path: Path) -> None:
    """Control sends the whole list whenever anything changes."""
    async with enrolled(tmp_path) as (it, control, ztunnel):
        await control.name(it.wanted)
        await control.name(it.wanted, replace(it.unwanted, uid="other", netns=it.peer.netns_path))

        assert (await control.report(2)).pod == "other"
        assert [report.pod for report in control.reports] == ["web", "other"]
        assert ztunnel.events == ["snapshot", "add web"]


@in_namespaces
async def test_release_stops_capture_first_and_cleans_up_last(tmp_path: Path) -> None:
    """draining when nothing new is captured; none when the last captured connection has ended."""
    async with enrolled(tmp_path) as (it, control, ztunnel):
        seen: list[Standing] = []
        ztunnel.before_ack = lambda event: seen.append(it.standing()) or ""
        await control.name(it.unwanted)

        assert (await control.report(2)).state == "draining"
        assert seen == [Standing.DRAINING]
        assert it.standing() is Standing.DRAINING
        await ztunnel.drained("web")
        assert (await control.report(3)).state == "none"
        assert it.standing() is Standing.NONE


@in_namespaces
async def test_enrolling_while_it_drains_cancels_the_removal(tmp_path: Path) -> None:
    """And a late word that the old connections have ended takes nothing away."""
    async with enrolled(tmp_path) as (it, control, ztunnel):
        await control.name(it.unwanted)
        assert (await control.report(2)).state == "draining"
        await control.name(it.wanted)
        assert (await control.report(3)).state == "enrolled"
        await ztunnel.drained("web")
        await control.name(it.wanted, replace(it.unwanted, uid="other", netns=it.peer.netns_path))
        await control.report(4)

        assert ztunnel.events == ["snapshot", "add web", "del web", "add web"]
        assert it.standing() is Standing.CAPTURED


@pytest.mark.parametrize("port", [15001, 15006, 15008])
@in_namespaces
async def test_a_taken_port_is_a_reason_to_refuse(
    port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named with whoever holds it, and nothing is half done."""
    async with scene(tmp_path) as it:
        control, ztunnel = await it.start_agent(), await it.start_ztunnel()
        # The fake ztunnel is this very process, so nothing here would be "another" one.
        monkeypatch.setattr(zds_server.ZdsServer, "pids", lambda _: frozenset())
        with listen_in(it.pod.netns, port):
            await control.name(it.wanted)
            report = await control.report(1)

        assert report.state == "failed"
        assert f"port {port} is taken by " in report.reason
        assert f"(pid {os.getpid()})" in report.reason
        assert ztunnel.events in ([], ["snapshot"])
        assert it.standing() is Standing.NONE


@pytest.mark.parametrize(
    ("netns", "reason"),
    [("/proc/self/ns/net", "host"), ("/nowhere", "no network namespace"), ("/proc/self/ns/pid", "")],
    ids=["host-network", "gone", "no-netns-at-all"],
)
@in_namespaces
async def test_what_is_no_pod_of_its_own_is_refused(netns: str, reason: str, tmp_path: Path) -> None:
    """With the reason, without touching anything."""
    async with scene(tmp_path) as it:
        control = await it.start_agent()
        await control.name(replace(it.wanted, netns=netns))

        report = await control.report(1)
        assert report.state == "failed"
        assert reason in report.reason
        await control.name(replace(it.unwanted, netns=netns))
        assert (await control.report(2)).state == "none"


@in_namespaces
async def test_a_refusal_by_ztunnel_is_rolled_back(tmp_path: Path) -> None:
    """Its words are the report's; a second try, after it was unwanted, may succeed."""
    async with scene(tmp_path) as it:
        control, ztunnel = await it.start_agent(), await it.start_ztunnel()
        ztunnel.before_ack = lambda event: "no certificate" if isinstance(event, WorkloadAdded) else ""
        await control.name(it.wanted)

        report = await control.report(1)
        assert (report.state, report.reason) == ("failed", "no certificate")
        assert it.standing() is Standing.NONE
        ztunnel.before_ack = lambda event: ""
        await control.name(it.unwanted)
        assert (await control.report(2)).state == "none"
        await control.name(it.wanted)
        assert (await control.report(3)).state == "enrolled"


@in_namespaces
async def test_without_a_ztunnel_nothing_is_captured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rules that lead nowhere would cut the pod off."""
    monkeypatch.setattr(zds_server, "CONNECT_DEADLINE", 0.05)
    async with scene(tmp_path) as it:
        control = await it.start_agent()
        await control.name(it.wanted)

        assert "no ztunnel" in (await control.report(1)).reason
        assert it.standing() is Standing.NONE


@in_namespaces
async def test_old_connections_are_reset_where_that_is_asked(tmp_path: Path) -> None:
    """``--existing reset``: for those who want all traffic in the mesh from now on."""
    async with scene(tmp_path) as it:
        with it.peer.listen(80) as listener, it.pod.connect(it.peer.ip, 80) as near:
            far, _ = listener.accept()
            control, _ = await it.start_agent(), await it.start_ztunnel()
            await control.name(replace(it.wanted, existing="reset"))

            assert (await control.report(1)).established_kept == 0
            with far, pytest.raises(ConnectionAbortedError):
                near.recv(1)


@in_namespaces
async def test_a_ztunnel_that_comes_anew_is_told_whom_to_serve(tmp_path: Path) -> None:
    """After its crash; and asked to drop what is draining, since the old one cannot answer any more."""
    async with enrolled(tmp_path) as (it, control, first):
        first.close()
        second = await it.start_ztunnel()
        await wait_for(lambda: second.events == ["add web", "snapshot"])
        await control.name(it.unwanted)
        assert (await control.report(2)).state == "draining"
        second.close()
        third = await it.start_ztunnel()
        await wait_for(lambda: third.events == ["snapshot", "del web"])
        await third.drained("web")

        assert (await control.report(3)).state == "none"
        assert it.standing() is Standing.NONE


@in_namespaces
async def test_a_new_agent_reads_from_the_kernel_what_the_old_one_did(tmp_path: Path) -> None:
    """Nobody's connection notices that it was away."""
    async with enrolled(tmp_path) as (it, _, ztunnel):
        it.agent.cancel()
        await wait_for(lambda: not os.path.exists(it.path))
        assert it.standing() is Standing.CAPTURED
        ztunnel.close()  # Or it would be in the way of the next one.

        control, ztunnel = await it.start_agent(), await it.start_ztunnel()
        await control.name(it.wanted)

        report = await control.report(1)
        assert (report.state, report.established_kept) == ("enrolled", 0)
        await wait_for(lambda: ztunnel.events == ["add web", "snapshot"])


@in_namespaces
async def test_a_new_agent_finishes_a_release(tmp_path: Path) -> None:
    """What drained under the old one is drained under the new."""
    async with scene(tmp_path) as it:
        backend.install(it.pod.netns, Capture())
        backend.put(it.pod.netns, drain_plan())
        control, ztunnel = await it.start_agent(), await it.start_ztunnel()
        await control.name(it.unwanted)

        await wait_for(lambda: ztunnel.events[-1:] == ["del web"])
        assert (await control.report(1)).state == "draining"
        await ztunnel.drained("web")
        assert (await control.report(2)).state == "none"
        assert it.standing() is Standing.NONE


@in_namespaces
async def test_rules_that_somebody_broke_are_mended(tmp_path: Path) -> None:
    """At the next word of control."""
    async with enrolled(tmp_path) as (it, control, _):
        backend.put(it.pod.netns, drain_plan())
        await control.name(replace(it.wanted, existing="reset"))

        await control.report(2)
        assert it.standing() is Standing.CAPTURED


@in_namespaces
async def test_a_pod_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    """ztunnel is told, the namespace is let go."""
    async with enrolled(tmp_path) as (it, control, ztunnel):
        await control.name()

        await wait_for(lambda: ztunnel.events[-1] == "del web")
        await wait_for(lambda: it.standing() is Standing.NONE)
