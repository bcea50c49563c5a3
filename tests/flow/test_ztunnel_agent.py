"""ZDS over a real socket: what the agent says is done, whatever becomes of the connection."""

from __future__ import annotations

import array
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio

from ambient.engine import host
from ambient.engine.netns import listen_in
from ambient.engine.reactor import Reactor
from ambient.model.mesh import Change
from ambient.model.workload import Workload
from ambient.wire import zds
from tests.flow.loopback import LoopbackMesh, LoopbackNetwork, application, echo, info_of, until
from ztunnel.handover import Handover
from ztunnel.inpod import MAX_BACKOFF, AgentFollower, backoff


class Agent:
    """The node agent's side, one request at a time."""

    def __init__(self, path: Path) -> None:
        self._listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._path = path
        self.drained: list[str] = []
        self.passed: list[zds.ListenersPassed | zds.KeyPassed] = []

    async def listen(self) -> None:
        await self._listener.bind(str(self._path))
        self._listener.listen()

    async def accept(self) -> None:
        self.sock, _ = await self._listener.accept()
        self.connection = zds.AgentConnection()
        assert self.connection.receive_packet(await self.sock.recv(5000)) == zds.Greeted()

    async def receive(self) -> zds.AgentEvent:
        """The next thing it says, but for what it passes: that is kept."""
        while True:
            data, ancillary, _, _ = await self.sock.recvmsg(5000, 256)
            fds = array.array("i")
            for _, _, raw in ancillary:
                fds.frombytes(raw)
            event = self.connection.receive_packet(data, fds)
            if not isinstance(event, zds.ListenersPassed | zds.KeyPassed):
                return event
            self.passed.append(event)

    async def add(self, workload: Workload, fd: int) -> str:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        await self.sock.sendmsg([self.connection.add(info_of(workload))], rights)
        return await self.ack()

    async def delete(self, uid: str) -> str:
        self.let_go()
        await self.sock.send(self.connection.delete(uid))
        return await self.ack()

    async def snapshot_sent(self) -> str:
        await self.sock.send(self.connection.snapshot_sent())
        return await self.ack()

    async def ack(self) -> str:
        while True:
            match await self.receive():
                case zds.Acked(error=error):
                    return error
                case zds.Drained(uid):
                    self.drained.append(uid)

    async def wait_drained(self) -> str:
        if self.drained:
            return self.drained.pop()
        event = await self.receive()
        assert isinstance(event, zds.Drained)
        return event.uid

    async def pass_on(self, passed: zds.ListenersPassed | zds.KeyPassed) -> str:
        """What another ztunnel passed, to this one."""
        match passed:
            case zds.ListenersPassed(uid, sockets):
                packet = self.connection.listeners(uid, [port for port, _ in sockets])
                fds = [fd for _, fd in sockets]
            case zds.KeyPassed(identity, fd):
                packet, fds = self.connection.key(identity), [fd]
        await self.sock.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        return await self.ack()

    async def retire(self) -> str:
        await self.sock.send(self.connection.retire())
        return await self.ack()

    def let_go(self) -> None:
        """Hold nothing."""
        for passed in self.passed:
            for fd in [fd for _, fd in passed.sockets] if hasattr(passed, "sockets") else [passed.fd]:
                os.close(fd)
        self.passed.clear()

    def close(self) -> None:
        self.sock.close()
        self._listener.close()
        self.let_go()


@asynccontextmanager
async def followed(reactor: Reactor, path: Path) -> AsyncIterator[tuple[LoopbackMesh, Agent, AgentFollower]]:
    """A ztunnel that follows an agent; namespaces are files named after addresses."""
    mesh = LoopbackMesh(reactor)

    def network(fd: int) -> LoopbackNetwork:
        ip = os.pread(fd, 64, 0).decode()
        if not ip:
            raise OSError(22, "not a network namespace")
        os.close(fd)
        return LoopbackNetwork(reactor, ip, mesh.wanted)

    agent = Agent(path)
    follower = AgentFollower(str(path), mesh.proxies, network, Handover(mesh.svids))
    await agent.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follower.run)
        with trio.fail_after(60):
            await agent.accept()
            yield mesh, agent, follower
        follower.stop()
    agent.close()
    await mesh.proxies.drain(0)


def namespace(path: Path, workload: Workload) -> int:
    file = path / f"{workload.name}.{len(list(path.iterdir()))}"
    file.write_text(workload.addresses[0])
    return os.open(file, os.O_RDONLY)


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_snapshot_live_and_drained(tmp_path: Path) -> None:
    """The whole life of two pods, as their agent sees it."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, tmp_path / "zds") as (mesh, agent, follower):
            web, api = mesh.workload("web"), mesh.workload("api")
            fd = namespace(tmp_path, web)
            assert await agent.add(web, fd) == ""
            assert not follower.snapshot_received
            assert await agent.snapshot_sent() == ""
            assert follower.snapshot_received
            assert await agent.add(api, namespace(tmp_path, api)) == ""
            assert mesh.proxies.running() == {web.uid, api.uid}
            before = mesh.proxies.all()
            assert await agent.add(web, fd) == ""
            assert mesh.proxies.all() == before, "the same pod in the same namespace is no news"

            assert await agent.delete(web.uid) == ""
            assert await agent.wait_drained() == web.uid
            assert await agent.delete("never seen") == ""
            assert await agent.wait_drained() == "never seen"
            assert mesh.proxies.running() == {api.uid}
            os.close(fd)

    host.run(main)


def test_many_are_served_side_by_side_and_answered_in_order(tmp_path: Path) -> None:
    """One pod whose certificate is late must not hold up the others of its node, only their answers."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, tmp_path / "zds") as (mesh, agent, follower):
            late, *others = (mesh.workload(name) for name in ("late", "b", "c", "d"))
            signed = trio.Event()
            at_once = mesh.svids.get

            async def get(identity: Any) -> Any:
                if identity == late.identity:
                    await signed.wait()
                return await at_once(identity)

            mesh.svids.get = get  # type: ignore[method-assign]
            for each in (late, *others):
                fd = namespace(tmp_path, each)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                await agent.sock.sendmsg([agent.connection.add(info_of(each))], rights)
                os.close(fd)
            await agent.sock.send(agent.connection.delete(others[0].uid))
            await agent.sock.send(agent.connection.snapshot_sent())
            await until(lambda: {each.uid for each in others[1:]} <= mesh.proxies.running())
            assert not follower.snapshot_received, "the snapshot overtakes nobody"
            assert agent.connection.unanswered == 6

            signed.set()
            answers = [await agent.receive() for _ in range(7)]

            acks = [event for event in answers if isinstance(event, zds.Acked)]
            assert [(ack.request, ack.uid) for ack in acks] == [
                *(("add", each.uid) for each in (late, *others)),
                ("del", others[0].uid),
                ("snapshot_sent", ""),
            ]
            assert {ack.error for ack in acks} == {""}
            assert mesh.proxies.running() == {late.uid, *(each.uid for each in others[1:])}

    host.run(main)


def test_an_agent_that_goes_away_takes_nothing_half_done_along(tmp_path: Path) -> None:
    """What waited for its certificate, and what waited behind it, is given up with its descriptors."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, tmp_path / "zds") as (mesh, agent, _follower):
            web = mesh.workload("web")
            asked = trio.Event()

            async def never(identity: Any) -> Any:
                asked.set()
                await trio.sleep_forever()

            mesh.svids.get = never  # type: ignore[method-assign]
            before = open_fds()
            for _ in range(2):
                fd = namespace(tmp_path, web)
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
                await agent.sock.sendmsg([agent.connection.add(info_of(web))], rights)
                os.close(fd)
            await asked.wait()
            agent.sock.close()
            await agent.accept()
            await until(lambda: open_fds() == before)
            assert mesh.proxies.running() == frozenset()

    host.run(main)


def test_another_namespace_replaces_the_pod(tmp_path: Path) -> None:
    """The pod was restarted under the same name."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, tmp_path / "zds") as (mesh, agent, _follower):
            web = mesh.workload("web")
            assert await agent.add(web, namespace(tmp_path, web)) == ""
            (old,) = mesh.proxies.all()
            # A loopback "namespace" cannot hold two listeners on a port: the old one goes first.
            assert await agent.delete(web.uid) == ""
            assert await agent.wait_drained() == web.uid
            assert await agent.add(web, namespace(tmp_path, web)) == ""
            (new,) = mesh.proxies.all()
            assert new is not old

    host.run(main)


def test_what_cannot_be_served_is_refused_with_a_reason(tmp_path: Path) -> None:
    """The operator sees it in the answer to ``enroll``."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, tmp_path / "zds") as (mesh, agent, _follower):
            web = mesh.workload("web")
            (tmp_path / "empty").touch()
            fd = os.open(tmp_path / "empty", os.O_RDONLY)
            before = open_fds()
            assert "not a network namespace" in await agent.add(web, fd)
            mesh.svids.refused.add(web.identity)
            assert "not of this node" in await agent.add(web, namespace(tmp_path, web))
            assert open_fds() == before + 1  # The agent's own, of the second namespace.
            assert mesh.proxies.running() == frozenset()

    host.run(main)


def test_pods_survive_the_agent_and_the_snapshot_decides(tmp_path: Path) -> None:
    """An agent that restarts must not cost a connection; one that forgot a pod means it."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, tmp_path / "zds") as (mesh, agent, follower):
            web, api = mesh.workload("web"), mesh.workload("api")
            web_fd = namespace(tmp_path, web)
            assert await agent.add(web, web_fd) == ""
            assert await agent.add(api, namespace(tmp_path, api)) == ""
            assert await agent.snapshot_sent() == ""
            agent.sock.close()
            await agent.accept()
            assert not follower.snapshot_received
            assert mesh.proxies.running() == {web.uid, api.uid}

            assert await agent.add(web, web_fd) == ""
            assert await agent.snapshot_sent() == ""
            assert mesh.proxies.running() == {web.uid}
            assert await agent.wait_drained() == api.uid

    host.run(main)


@pytest.mark.parametrize("packet", [[1, 2], "add"], ids=["a-list", "a-word"])
def test_a_broken_agent_is_left_and_met_again(tmp_path: Path, packet: Any) -> None:
    """Its descriptors are closed, its pods live on."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, tmp_path / "zds") as (mesh, agent, _follower):
            web = mesh.workload("web")
            assert await agent.add(web, namespace(tmp_path, web)) == ""
            fd = os.open(tmp_path, os.O_RDONLY)
            before = open_fds()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd, fd]))]
            await agent.sock.sendmsg([msgpack.packb(packet)], rights)
            assert await agent.sock.recv(100) == b""
            agent.sock.close()
            await agent.accept()
            assert open_fds() <= before
            assert mesh.proxies.running() == {web.uid}
            os.close(fd)

    host.run(main)


def test_what_drained_while_the_agent_was_away_is_told_later(tmp_path: Path) -> None:
    """It waits for that word before it takes the rules away."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, tmp_path / "zds") as (mesh, agent, _follower):
            web = mesh.workload("web")
            assert await agent.add(web, namespace(tmp_path, web)) == ""
            agent.sock.close()
            await mesh.proxies.remove(web.uid)
            await until(lambda: not mesh.proxies.all())
            await agent.accept()
            assert await agent.wait_drained() == web.uid

    host.run(main)


def test_backoff_grows_to_a_bound() -> None:
    """Ten milliseconds after a restart of the agent, fifteen seconds if it is gone."""
    assert backoff(0, 0.5) == pytest.approx(0.01)
    assert backoff(3, 0.5) == pytest.approx(0.08)
    assert backoff(1000, 0.999) <= MAX_BACKOFF * 1.2


def test_the_next_ztunnel_gets_the_very_listeners_and_the_key(tmp_path: Path) -> None:
    """What waits in the backlog of a process that was killed is served by the next one."""

    async def main(reactor: Reactor) -> None:
        (tmp_path / "second").mkdir()
        async with (
            followed(reactor, tmp_path / "zds") as (mesh, agent, _),
            followed(reactor, tmp_path / "second" / "zds") as (other, second, follower),
        ):
            web = mesh.workload("web")
            other.apply(Change(workloads=(web,)))
            assert await agent.add(web, namespace(tmp_path, web)) == ""
            listeners, key = agent.passed
            assert isinstance(listeners, zds.ListenersPassed)
            assert isinstance(key, zds.KeyPassed)
            assert [port for port, _ in listeners.sockets] == [15001, 15006, 15008]
            (old,) = mesh.proxies.all()
            old.abort()

            for passed in (key, listeners):
                assert await second.pass_on(passed) == ""
            assert await second.add(web, namespace(tmp_path, web)) == ""
            assert await second.snapshot_sent() == ""

            (new,) = other.proxies.all()
            assert [os.fstat(fd).st_ino for _, fd in new.listeners()] == [
                os.fstat(fd).st_ino for _, fd in listeners.sockets
            ]
            assert other.svids.held(web.identity) == mesh.svids.held(web.identity)
            assert follower.snapshot_received

    host.run(main)


def test_what_nobody_asks_for_is_closed_with_the_snapshot(tmp_path: Path) -> None:
    """A pod that went while no ztunnel was there must not keep its ports for ever."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, tmp_path / "zds") as (_mesh, agent, _follower):
            before = open_fds()
            with listen_in(None, 0, host="127.0.0.1") as sock:
                assert await agent.pass_on(zds.ListenersPassed("gone", ((15001, sock.fileno()),))) == ""
                assert open_fds() == before + 2
            assert await agent.snapshot_sent() == ""
            assert open_fds() == before

    host.run(main)


def test_a_retired_ztunnel_keeps_what_is_open_and_ends_with_it(tmp_path: Path) -> None:
    """An upgrade costs nobody a connection, and takes as long as the longest of them."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, tmp_path / "zds") as (mesh, agent, follower):
            web, api = mesh.workload("web"), mesh.workload("api")
            for each in (web, api):
                assert await agent.add(each, namespace(tmp_path, each)) == ""
            assert await agent.snapshot_sent() == ""
            retired = trio.Event()
            follower.on_retired = retired.set
            async with application(api, 8080, echo):
                stream = await mesh.connect(web, (api.addresses[0], 8080))
                await stream.send_all(b"before")
                assert await stream.receive_some() == b"before"

                assert await agent.retire() == ""

                assert retired.is_set()
                assert mesh.proxies.running() == frozenset()
                await trio.sleep(0.4)  # Not luck: longer than GOAWAY_DELAY, so that the GOAWAY has arrived.
                await stream.send_all(b"after")
                assert await stream.receive_some() == b"after"
                await stream.aclose()
                await mesh.proxies.emptied()
            assert [record.error for record in await mesh.records(2)] == ["", ""]

    host.run(main)
