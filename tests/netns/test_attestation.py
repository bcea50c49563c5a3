"""Attestation against a real kernel: what somebody breaks is repaired, or admitted."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns
from ambient.model.mesh import Change
from ambient.model.workload import Workload
from ambient.redirect import attestation, attestation_plan, backend, zds_server
from ambient.redirect.backend import Standing
from ambient.redirect.plan import ROUTING_RULES
from ambient.wire import netlink_route
from ambient.wire.zds import WorkloadAdded
from tests.lab import in_namespaces, make_netns
from tests.netns.test_agent import FakeControl, Scene, enrolled, scene, wait_for

# A mesh in which the pod accepts plaintext; in an empty one nothing is known of it, and it does not.
WORKLOAD = Workload(uid="web", name="web-1", namespace="shop", addresses=(), node="node-1")
PERMISSIVE = Change(workloads=(WORKLOAD,), snapshot=True)


def nft(netns: int, *arguments: str) -> None:
    """What somebody does by hand."""
    with in_netns(netns):
        subprocess.run(["nft", *arguments], check=True, timeout=20)


async def reported(control: FakeControl, state: str, count: int = 2) -> str:
    """Wait for the report number *count*, which must be of *state*; return its reason."""
    report = await control.report(count)
    assert report.state == state, report
    return report.reason


@pytest.mark.nft
@in_namespaces
async def test_rules_flushed_by_hand_are_put_back(tmp_path: Path) -> None:
    """Told by the kernel's own news, not by the clock; and counted."""
    async with enrolled(tmp_path) as (it, control, ztunnel):
        nft(it.pod.netns, "flush", "ruleset")

        report = await control.report(2)

        assert (report.state, report.repairs) == ("enrolled", 1)
        assert it.standing() is Standing.CAPTURED
        assert ztunnel.events == ["snapshot", "add web"]


@pytest.mark.nft
@in_namespaces
async def test_a_rule_that_somebody_adds_in_front_is_taken_out(tmp_path: Path) -> None:
    """Not only what is missing is wrong."""
    async with enrolled(tmp_path) as (it, control, _):
        nft(it.pod.netns, "insert", "rule", "inet", "ambient", "pre", "accept")

        await reported(control, "enrolled")
        assert it.standing() is Standing.CAPTURED


@in_namespaces
async def test_routes_are_part_of_the_capture(tmp_path: Path) -> None:
    """Without the routing rule an application's answers leave past the proxy; the rules' generation stays."""
    async with enrolled(tmp_path) as (it, control, _):
        with NetlinkSocket(it.pod.netns) as nl:
            nl.run(netlink_route.delete_rule(ROUTING_RULES[0]))

            await reported(control, "enrolled")
            assert ROUTING_RULES[0] in nl.rules(ROUTING_RULES[0].family)


@in_namespaces
async def test_the_clock_finds_what_no_news_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """News can be lost; the second look is not."""
    monkeypatch.setattr(attestation.Attestor, "_on_events", _nothing)
    async with enrolled(tmp_path) as (it, control, _):
        backend.remove(it.pod.netns)

        await reported(control, "enrolled")
        assert it.standing() is Standing.CAPTURED


async def _nothing(_self: object) -> None:
    await trio.sleep_forever()


@in_namespaces
async def test_listeners_that_are_gone_are_opened_again(tmp_path: Path) -> None:
    """``ss -K`` inside the pod, for one; ztunnel believes that it listens, and is told to forget first."""
    async with enrolled(tmp_path) as (_, control, ztunnel):
        ztunnel.stop_listening("web")

        await reported(control, "enrolled")
        assert ztunnel.events == ["snapshot", "add web", "del web", "add web"]


@in_namespaces
async def test_a_ztunnel_that_is_back_in_time_needs_no_repair(tmp_path: Path) -> None:
    """Its snapshot opens the listeners; the pod was never un-enrolled."""
    async with enrolled(tmp_path) as (it, control, first):
        first.close()
        second = await it.start_ztunnel()
        await wait_for(lambda: second.events == ["add web", "snapshot"])
        await control.name(it.wanted, replace(it.unwanted, uid="other", netns=it.peer.netns_path))

        assert (await control.report(2)).pod == "other"
        assert it.standing() is Standing.CAPTURED


@pytest.mark.parametrize("mesh", [PERMISSIVE, Change(snapshot=True)], ids=["permissive", "strict"])
@in_namespaces
async def test_a_ztunnel_that_stays_away_is_admitted(
    mesh: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never rules without listeners: not captured, or closed; and enrolled again when one is there."""
    monkeypatch.setattr(attestation_plan, "ZTUNNEL_SECONDS", 0.1)
    monkeypatch.setattr(attestation_plan, "HELD_SECONDS", 0.1)
    monkeypatch.setattr(zds_server, "CONNECT_DEADLINE", 0.1)
    async with enrolled(tmp_path, mesh) as (it, control, ztunnel):
        ztunnel.close()

        assert "nobody listens on port 15001, and no ztunnel" in await reported(control, "lost")
        left = Standing.DRAINING if mesh is PERMISSIVE else Standing.CLOSED
        await wait_for(lambda: it.standing() is left)
        again = await it.start_ztunnel()
        await wait_for(lambda: control.reports[-1].state == "enrolled")
        assert it.standing() is Standing.CAPTURED
        assert again.events[-1] == "add web"


@in_namespaces
async def test_a_closed_pod_can_be_reached_by_its_probes_only(tmp_path: Path) -> None:
    """STRICT means that plaintext is refused, also while nobody is there to refuse it."""
    async with enrolled(tmp_path) as (it, control, ztunnel):
        ztunnel.before_ack = lambda event: "no certificate" if isinstance(event, WorkloadAdded) else ""
        ztunnel.stop_listening("web")
        await reported(control, "lost")
        await wait_for(lambda: it.standing() is Standing.CLOSED)

        with it.pod.listen(80), pytest.raises(OSError, match="timed out"):
            it.peer.connect(it.pod.ip, 80, deadline=0.3)


async def strayed(it: Scene, control: FakeControl) -> tuple[socket.socket, socket.socket]:
    """(older than the capture, come in while somebody had taken the rules away): two ends at the peer."""
    older = it.peer.connect(it.pod.ip, 80)
    ztunnel = await it.start_ztunnel()
    await control.name(it.wanted)
    await reported(control, "enrolled", 1)
    assert ztunnel.events == ["snapshot", "add web"]
    backend.remove(it.pod.netns)
    return older, it.peer.connect(it.pod.ip, 80)


def is_open(sock: socket.socket) -> bool:
    """Whether nobody has ended it."""
    sock.setblocking(False)
    try:
        return bool(sock.recv(1))
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False


@pytest.mark.parametrize("mesh", [PERMISSIVE, Change(snapshot=True)], ids=["permissive", "strict"])
@in_namespaces
async def test_who_came_in_while_no_rules_stood_is_accounted_for(
    mesh: Change, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Policy was asked about none of them: counted as plaintext, or reset if policy refuses plaintext."""
    monkeypatch.setattr(attestation.Attestor, "_on_events", _nothing)
    async with scene(tmp_path) as it:
        with it.pod.listen(80):
            control = await it.start_agent(mesh)
            older, stray = await strayed(it, control)
            with older, stray:
                await reported(control, "enrolled")
                assert it.standing() is Standing.CAPTURED
                if mesh is PERMISSIVE:
                    await wait_for(lambda: control.plaintext() == {"web": 2})
                else:
                    await wait_for(lambda: not is_open(stray))
                    await wait_for(lambda: control.plaintext() == {"web": 1})
                assert is_open(older)


@in_namespaces
async def test_closing_a_pod_ends_what_came_in_before_it_was_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No policy let it in, and closed means closed; what its owner had kept is kept."""
    monkeypatch.setattr(attestation.Attestor, "_on_events", _nothing)
    async with scene(tmp_path) as it:
        with it.pod.listen(80):
            control = await it.start_agent()
            older, stray = await strayed(it, control)
            with older, stray:
                monkeypatch.setattr(backend, "install", _refused)
                assert "refused" in await reported(control, "lost")
                await wait_for(lambda: it.standing() is Standing.CLOSED)
                await wait_for(lambda: not is_open(stray))
                assert is_open(older)


def _refused(*_what: object) -> None:
    raise OSError("refused")


# Binds as soon as it can, says so, and stays.
STRANGER = """
import socket, sys
while True:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("0.0.0.0", 15006))
        sock.listen()
        break
    except OSError:
        sock.close()
sys.stdin.read()
"""


@in_namespaces
async def test_a_stranger_on_a_port_is_named(tmp_path: Path) -> None:
    """Whoever holds 15006 gets what is captured: that is no enrollment, and no repair takes it away."""
    async with enrolled(tmp_path, PERMISSIVE) as (it, control, ztunnel):
        with in_netns(it.pod.netns):
            stranger = subprocess.Popen([sys.executable, "-c", STRANGER], stdin=subprocess.PIPE)  # noqa: ASYNC220
        with stranger:
            ztunnel.listeners["web"][1].close()

            await wait_for(lambda: any("port 15006 is taken by" in each.reason for each in control.reports))
            assert control.reports[-1].state == "lost"
            await wait_for(lambda: it.standing() is Standing.DRAINING)
            stranger.kill()
        await wait_for(lambda: control.reports[-1].state == "enrolled")
        assert it.standing() is Standing.CAPTURED


def furnished(scene: Scene) -> int:
    """A namespace that could be the pod's: it has its addresses."""
    made = make_netns({})
    with NetlinkSocket(made) as nl:
        for ip in (scene.pod.ip, scene.pod.ip6):
            nl.add_address("lo", ip)
    return made


@asynccontextmanager
async def replaceable(path: Path) -> AsyncIterator[tuple[Scene, FakeControl, Callable[[int], None]]]:
    """An enrolled pod whose path can be made to lead elsewhere."""
    async with scene(path) as it:
        fd = os.dup(it.pod.netns)
        control, _ = await it.start_agent(PERMISSIVE), await it.start_ztunnel()
        await control.name(replace(it.wanted, netns=f"/proc/{os.getpid()}/fd/{fd}"))
        await reported(control, "enrolled", 1)
        yield it, control, lambda other: os.dup2(other, fd, inheritable=False) and None


@in_namespaces
async def test_a_replaced_namespace_is_enrolled_in_its_turn(tmp_path: Path) -> None:
    """istio#61182: out of the mesh and its policies for 29 days, while all said "enrolled"."""
    async with replaceable(tmp_path) as (it, control, lead_to):
        other = furnished(it)
        lead_to(other)

        await reported(control, "enrolled")
        assert backend.standing(other) is Standing.CAPTURED
        assert it.standing() is Standing.NONE


@in_namespaces
async def test_a_namespace_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    """A path, or a process id, may come to mean another pod."""
    async with replaceable(tmp_path) as (it, control, lead_to):
        lead_to(it.peer.netns)

        assert "is not the pod's: it has no address" in await reported(control, "lost")
        assert backend.standing(it.peer.netns) is Standing.NONE
        assert it.standing() is Standing.NONE
        other = furnished(it)
        lead_to(other)
        await wait_for(lambda: control.reports[-1].state == "enrolled")
        assert backend.standing(other) is Standing.CAPTURED


@in_namespaces
async def test_a_namespace_that_is_gone_is_admitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once control has had its time to say that the pod has ended."""
    monkeypatch.setattr(attestation_plan, "GONE_SECONDS", 0.1)
    async with enrolled(tmp_path, PERMISSIVE) as (it, control, _):
        await control.name(replace(it.wanted, netns="/proc/1/fd/nothing"))
        await reported(control, "enrolled")

        assert "namespace is gone" in await reported(control, "lost", 3)


@in_namespaces
async def test_a_new_agent_takes_up_the_lost(tmp_path: Path) -> None:
    """What was closed says so in the kernel; nothing else remembers it."""
    async with enrolled(tmp_path) as (it, control, ztunnel):
        ztunnel.before_ack = lambda event: "no certificate" if isinstance(event, WorkloadAdded) else ""
        ztunnel.stop_listening("web")
        await reported(control, "lost")
        await wait_for(lambda: it.standing() is Standing.CLOSED)
        it.agent.cancel()
        await wait_for(lambda: not os.path.exists(it.path))

        control, ztunnel = await it.start_agent(), await it.start_ztunnel()
        await control.name(it.wanted)

        await wait_for(lambda: any(each.state == "enrolled" for each in control.reports))
        assert it.standing() is Standing.CAPTURED


@in_namespaces
async def test_a_lost_pod_is_released_like_any_other(tmp_path: Path) -> None:
    """Closed or not: whoever leaves the mesh is open again."""
    async with enrolled(tmp_path) as (it, control, ztunnel):
        ztunnel.before_ack = lambda event: "no certificate" if isinstance(event, WorkloadAdded) else ""
        ztunnel.stop_listening("web")
        await reported(control, "lost")
        await wait_for(lambda: it.standing() is Standing.CLOSED)

        await control.name(it.unwanted)
        await wait_for(lambda: control.reports[-1].state == "draining")
        await ztunnel.drained("web")
        await wait_for(lambda: control.reports[-1].state == "none")
        assert it.standing() is Standing.NONE


@in_namespaces
async def test_the_numbers_are_served(tmp_path: Path) -> None:
    """For an alert on pods that are lost."""
    async with enrolled(tmp_path) as (_, control, ztunnel):
        ztunnel.before_ack = lambda event: "no certificate" if isinstance(event, WorkloadAdded) else ""
        ztunnel.stop_listening("web")
        await reported(control, "lost")

        stream = await trio.open_tcp_stream("127.0.0.1", 15014)
        async with stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            text = b"".join([data async for data in stream]).decode()

        assert "ambient_pods_lost 1" in text
        assert 'ambient_attestation_repairs_total{what="listeners"} 1' in text


@in_namespaces
async def test_connections_older_than_the_enrollment_are_counted_until_they_end(tmp_path: Path) -> None:
    """They are plaintext, and nobody is to forget it."""
    async with scene(tmp_path) as it:
        with it.peer.listen(80) as listener:
            nears = [it.pod.connect(it.peer.ip, 80), it.pod.connect(it.peer.ip6, 80)]
            fars = [listener.accept()[0] for _ in nears]
            control, _ = await it.start_agent(PERMISSIVE), await it.start_ztunnel()
            await control.name(it.wanted)
            report = await control.report(1)

            assert (report.established_kept, report.established_reset, len(report.existing)) == (2, 0, 2)
            assert any(f"{it.peer.ip}:80" in each for each in report.existing)
            await wait_for(lambda: control.plaintext() == {"web": 2})
            for each in (nears[0], fars[0]):
                each.close()
            await wait_for(lambda: control.plaintext() == {"web": 1})
            for each in (nears[1], fars[1]):
                each.close()
            await wait_for(lambda: control.plaintext() == {})


@in_namespaces
async def test_whoever_has_left_the_mesh_has_no_connections_past_it(tmp_path: Path) -> None:
    """Nothing of the pod is captured any more, so nothing goes past; and nobody would notice their end."""
    async with scene(tmp_path) as it:
        with it.peer.listen(80) as listener, it.pod.connect(it.peer.ip, 80), listener.accept()[0]:
            control, _ = await it.start_agent(PERMISSIVE), await it.start_ztunnel()
            await control.name(it.wanted)
            assert (await control.report(1)).established_kept == 1
            await wait_for(lambda: control.plaintext() == {"web": 1})

            await control.name(it.unwanted)

            await wait_for(lambda: control.plaintext() == {})


@in_namespaces
async def test_a_new_agent_finds_the_older_connections_again(tmp_path: Path) -> None:
    """From the kernel: whatever is open and has no proxy at its other end."""
    async with scene(tmp_path) as it:
        with it.peer.listen(80) as listener, it.pod.connect(it.peer.ip, 80):
            far, _ = listener.accept()
            control, _ = await it.start_agent(PERMISSIVE), await it.start_ztunnel()
            await control.name(it.wanted)
            assert (await control.report(1)).established_kept == 1
            through = it.pod.connect(it.peer.ip, 80)
            it.agent.cancel()
            await wait_for(lambda: not os.path.exists(it.path))

            control, _ = await it.start_agent(PERMISSIVE), await it.start_ztunnel()
            await control.name(it.wanted)

            assert (await control.report(1)).established_kept == 1
            await wait_for(lambda: control.plaintext() == {"web": 1})
            for each in (far, through):
                each.close()
