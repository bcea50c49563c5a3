"""The agent's end of ZDS with two ztunnels: who is to be heard before a pod is left alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import trio
import trio.testing

from ambient.model.identity import SpiffeId
from ambient.redirect import zds_server
from ambient.redirect.zds_server import Named, ZdsServer
from ambient.wire.zds import WorkloadAdded, WorkloadInfo, WorkloadRemoved, ZtunnelConnection
from tests.flow.loopback import until


class Ztunnel:
    """Has nothing to serve; *empty* ones say so before they answer."""

    def __init__(self, path: str, *, retired: bool, empty: bool) -> None:
        self._path, self._retired, self._empty = path, retired, empty
        self._wire = ZtunnelConnection()
        self.asked = trio.Event()
        self.refusals: list[str] = []
        self._sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await self._sock.connect(self._path)
        await self._sock.send(self._wire.hello(retired=self._retired))
        task_status.started()
        with self._sock, suppress(trio.ClosedResourceError):
            while True:
                data, ancillary, _, _ = await self._sock.recvmsg(4096, 256)
                if not data:
                    return
                fds = [int.from_bytes(raw[:4], "little") for _, _, raw in ancillary]
                match self._wire.receive_packet(data, fds):
                    case WorkloadRemoved(uid):
                        if self._empty:
                            await self.drained(uid)
                        await self._sock.send(self._wire.ack(""))
                        self.asked.set()
                    case WorkloadAdded():
                        os.close(fds[0])
                        await self._sock.send(self._wire.ack(self.refusals.pop() if self.refusals else ""))
                    case _:
                        await self._sock.send(self._wire.ack(""))

    def close(self) -> None:
        self._sock.close()

    async def drained(self, uid: str) -> None:
        await self._sock.send(self._wire.drained(uid))


async def nobody() -> Iterable[Named]:
    return ()


async def test_a_pod_is_drained_when_every_ztunnel_has_said_so(tmp_path: Path) -> None:
    """Also if the first one to be asked has nothing of it: the rules of the others' connections would go.

    Seen as resets at an un-enrollment after an agent had been killed: the newest ztunnel was back first.
    """
    path = str(tmp_path / "zds")
    server = ZdsServer(path, nobody)
    heard: list[str] = []
    server.on_drained = heard.append
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        newest = Ztunnel(path, retired=False, empty=True)
        older = Ztunnel(path, retired=True, empty=False)
        await nursery.start(newest.run)
        with trio.fail_after(10):
            await server.ready()
            await nursery.start(older.run)
            await until(lambda: len(server._links) == 2 and server._links[1].retired)
            await trio.testing.wait_all_tasks_blocked(0.01)

            await server.delete("web")

            assert older.asked.is_set()
            assert heard == []
            await older.drained("web")
            await until(lambda: bool(heard))
        assert heard == ["web"]
        nursery.cancel_scope.cancel()


async def test_an_agent_that_has_just_come_waits_for_those_that_are_not_back(tmp_path: Path) -> None:
    """A replaced ztunnel dials a new agent in its time, and may carry what the newest knows nothing of."""
    path = str(tmp_path / "zds")
    server = ZdsServer(path, nobody)
    heard: list[str] = []
    server.on_drained = heard.append
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        newest = Ztunnel(path, retired=False, empty=True)
        older = Ztunnel(path, retired=True, empty=False)
        await nursery.start(newest.run)
        with trio.fail_after(10):
            await server.ready()
            await server.delete("web")
            await newest.asked.wait()
            await nursery.start(older.run)
            await older.asked.wait()
            await trio.sleep(zds_server.RETURN_SECONDS)
            assert heard == []

            await older.drained("web")
            await until(lambda: bool(heard))
        assert heard == ["web"]
        nursery.cancel_scope.cancel()


async def test_what_only_the_newest_had_is_told_when_nobody_else_came(tmp_path: Path) -> None:
    """Later, but told."""
    path = str(tmp_path / "zds")
    server = ZdsServer(path, nobody)
    heard: list[str] = []
    server.on_drained = heard.append
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        await nursery.start(Ztunnel(path, retired=False, empty=True).run)
        with trio.fail_after(10):
            await server.ready()
            await server.delete("web")
            await until(lambda: bool(heard))
        assert heard == ["web"]
        nursery.cancel_scope.cancel()


async def test_a_replaced_ztunnel_that_ends_has_nothing_left(tmp_path: Path) -> None:
    """It ends with its last connection, or is killed; in either case it may not have come to say so."""
    path = str(tmp_path / "zds")
    server = ZdsServer(path, nobody)
    heard: list[str] = []
    server.on_drained = heard.append
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        await nursery.start(Ztunnel(path, retired=False, empty=True).run)
        older = Ztunnel(path, retired=True, empty=False)
        await nursery.start(older.run)
        with trio.fail_after(10):
            await server.ready()
            await until(lambda: len(server._links) == 2 and server._links[1].retired)
            await server.delete("web")
            await older.asked.wait()
            assert heard == []

            older.close()
            await until(lambda: bool(heard))
        assert heard == ["web"]
        nursery.cancel_scope.cancel()


async def test_a_pod_that_the_newest_cannot_serve_yet_is_asked_for_again(tmp_path: Path) -> None:
    """A new agent holds no listeners: who has them is about to come, and they are in the way until then."""
    path = str(tmp_path / "zds")
    web = WorkloadInfo(
        uid="web",
        name="web-1",
        namespace="shop",
        service_account="web",
        identity=SpiffeId("cluster.local", "shop", "web"),
    )
    netns = os.open("/proc/self/ns/net", os.O_RDONLY)

    async def captured() -> Iterable[Named]:
        return [(web, netns)]

    server = ZdsServer(path, captured)
    refused: list[tuple[str, str]] = []
    server.on_refused = lambda uid, reason: refused.append((uid, reason))
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run)
        newest = Ztunnel(path, retired=False, empty=True)
        newest.refusals = ["[Errno 98] cannot listen on 15001 in the pod: Address already in use"]
        await nursery.start(newest.run)
        with trio.fail_after(10):
            await server.ready()
        assert (refused, newest.refusals) == ([], [])
        nursery.cancel_scope.cancel()
    os.close(netns)
