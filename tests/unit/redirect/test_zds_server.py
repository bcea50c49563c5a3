"""The agent's end of ZDS with two ztunnels: who is to be heard before a pod is left alone."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
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


@dataclass
class Agent:
    """A server to which ztunnels come, and the pods of which it said that they are drained."""

    path: str
    nursery: trio.Nursery
    server: ZdsServer
    heard: list[str]

    async def ztunnel(self, *, retired: bool, empty: bool) -> Ztunnel:
        """One more."""
        made = Ztunnel(self.path, retired=retired, empty=empty)
        await self.nursery.start(made.run)
        return made

    async def retired_one(self) -> Ztunnel:
        """One more, which still has something and has said that it is retired."""
        made = await self.ztunnel(retired=True, empty=False)
        await until(lambda: self.server._links[-1].retired)
        return made

    async def hears(self, uid: str) -> None:
        """Wait until *uid* alone is drained."""
        await until(lambda: bool(self.heard))
        assert self.heard == [uid]


@asynccontextmanager
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """One that has just come; ten seconds are for ever."""
    path = str(tmp_path / "zds")
    server = ZdsServer(path, nobody)
    heard: list[str] = []
    server.on_drained = heard.append
    async with trio.open_nursery() as nursery:
        with trio.fail_after(10):
            await nursery.start(server.run)
            yield Agent(path, nursery, server, heard)
        nursery.cancel_scope.cancel()


async def test_a_pod_is_drained_when_every_ztunnel_has_said_so(tmp_path: Path) -> None:
    """Also if the first one to be asked has nothing of it: the rules of the others' connections would go.

    Seen as resets at an un-enrollment after an agent had been killed: the newest ztunnel was back first.
    """
    async with agent(tmp_path) as it:
        await it.ztunnel(retired=False, empty=True)
        await it.server.ready()
        older = await it.retired_one()
        it.server._all_are_back = 0.0  # This agent has been there for long: all who will come have come.
        await trio.testing.wait_all_tasks_blocked(0.01)

        await it.server.delete("web")

        assert older.asked.is_set()
        assert it.heard == []
        await older.drained("web")
        await it.hears("web")


async def test_an_agent_that_has_just_come_waits_for_those_that_are_not_back(tmp_path: Path) -> None:
    """A replaced ztunnel dials a new agent in its time, and may carry what the newest knows nothing of."""
    async with agent(tmp_path) as it:
        newest = await it.ztunnel(retired=False, empty=True)
        await it.server.ready()
        await it.server.delete("web")
        await newest.asked.wait()
        older = await it.ztunnel(retired=True, empty=False)
        await older.asked.wait()
        await trio.sleep(zds_server.RETURN_SECONDS)
        assert it.heard == []

        await older.drained("web")
        await it.hears("web")


async def test_what_only_the_newest_had_is_told_when_nobody_else_came(tmp_path: Path) -> None:
    """Later, but told."""
    async with agent(tmp_path) as it:
        await it.ztunnel(retired=False, empty=True)
        await it.server.ready()
        await it.server.delete("web")
        await it.hears("web")


async def test_a_replaced_ztunnel_that_ends_has_nothing_left(tmp_path: Path) -> None:
    """It ends with its last connection, or is killed; in either case it may not have come to say so."""
    async with agent(tmp_path) as it:
        await it.ztunnel(retired=False, empty=True)
        await it.server.ready()
        older = await it.retired_one()
        await it.server.delete("web")
        await older.asked.wait()
        assert it.heard == []

        older.close()
        await it.hears("web")


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
