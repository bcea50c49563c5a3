"""The agent's end of ZDS: a socket that ztunnels dial, and the requests that go out to them.

While a node's ztunnel is replaced, two are connected for a time. Then the newest gets what is added
and all are told what is removed; a removed workload is drained when every one has said so.
"""

from __future__ import annotations

import array
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

import trio

from ambient.errors import ProtocolError, Unavailable
from ambient.wire.zds import MAX_PACKET_BYTES, Acked, AgentConnection, Drained, WorkloadInfo

log = logging.getLogger("agent")

# Istio's CNI agent waits 5 s for any ack.
ACK_DEADLINE = 5.0
# An ``add`` waits at ztunnel for the mesh to name the workload (5 s) and for its certificate (10 s); its own
# reason is worth more than our impatience.
ADD_DEADLINE = 17.0
# How long a request waits for a ztunnel that is not there; picked, not measured.
CONNECT_DEADLINE = 10.0
BACKLOG = 8

Named: TypeAlias = tuple[WorkloadInfo, int]


class ZdsServer:
    """Speaks to the ztunnels of a node.

    Args:
        path: Where to listen.
        snapshot: Waits until the node's pods are known and returns what is captured: whom, and the
            descriptor of the namespace. A workload missing here is drained by ztunnel.

    Attributes:
        on_drained: Told the uid of a removed workload when nothing of it is left.
        on_refused: Told (uid, reason) when a ztunnel cannot serve a workload of the snapshot.
    """

    def __init__(self, path: str, snapshot: Callable[[], Awaitable[Iterable[Named]]]) -> None:
        self.on_drained: Callable[[str], None] = lambda uid: None
        self.on_refused: Callable[[str, str], None] = lambda uid, reason: None
        self._path = path
        self._snapshot = snapshot
        self._links: list[_Link] = []
        self._latest: _Link | None = None
        self._arrived = trio.Event()
        self._draining: dict[str, set[_Link]] = {}

    @property
    def connected(self) -> bool:
        """Whether a ztunnel has its snapshot."""
        return self._latest is not None

    def pids(self) -> frozenset[int]:
        """The processes of the ztunnels."""
        return frozenset(link.pid for link in self._links)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled.

        Raises:
            OSError: the path cannot be bound.
        """
        listener = _listen(self._path)
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    sock, _ = await listener.accept()
                    nursery.start_soon(self._serve, sock)
        finally:
            listener.close()
            Path(self._path).unlink(missing_ok=True)

    async def add(self, workload: WorkloadInfo, netns: int) -> None:
        """Have *workload* served; returns when its listeners are open.

        Raises:
            Unavailable: ztunnel cannot, is not there, or does not answer.
        """
        link = await self._newest()
        self._draining.pop(workload.uid, None)
        error = await link.request(lambda: link.wire.add(workload), netns, ADD_DEADLINE)
        if error:
            raise Unavailable(error)

    async def delete(self, uid: str) -> None:
        """Have *uid* drained; returns when no listener of it is left. ``on_drained`` follows in its time.

        Without a ztunnel there is nobody to ask: the next one to come is asked.
        """
        waiting = self._draining.setdefault(uid, set())
        for link in tuple(self._links):
            waiting.add(link)
            await self._ask_to_delete(link, uid)

    async def _ask_to_delete(self, link: _Link, uid: str) -> None:
        try:
            error = await link.request(lambda: link.wire.delete(uid), None, ACK_DEADLINE)
        except Unavailable as exc:
            error = str(exc)
        if error:
            log.warning("ztunnel %d was to drop %s: %s", link.pid, uid, error)

    async def _newest(self) -> _Link:
        with trio.move_on_after(CONNECT_DEADLINE):
            while self._latest is None:
                await self._arrived.wait()
            return self._latest
        raise Unavailable("no ztunnel is connected to this node's agent")

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        link = _Link(sock, self._drained)
        if link.uid not in (0, os.geteuid()):
            log.error("refused a ztunnel of uid %d", link.uid)
            sock.close()
            return
        self._links.append(link)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.read, nursery.cancel_scope)
                nursery.start_soon(self._introduce, link)
        finally:
            sock.close()
            self._forget(link)

    async def _introduce(self, link: _Link) -> None:
        """Say hello back with everything that is captured; then the link is the newest."""
        try:
            with trio.fail_after(ACK_DEADLINE):
                await link.greeted.wait()
            await self._name_all(link)
        except (Unavailable, trio.TooSlowError) as exc:
            log.error("ztunnel %d did not take its snapshot: %r", link.pid, exc)
            link.cancel()
            return
        for uid in tuple(self._draining):
            self._draining[uid].add(link)
            await self._ask_to_delete(link, uid)

    async def _name_all(self, link: _Link) -> None:
        named: set[str] = set()
        while True:
            todo = [each for each in await self._snapshot() if each[0].uid not in named]
            if not todo:
                break
            for workload, netns in todo:
                named.add(workload.uid)
                error = await link.request(_adding(link, workload), netns, ADD_DEADLINE)
                if error:
                    self.on_refused(workload.uid, error)
        # From here on whatever is enrolled goes to this link, so that nothing falls between.
        self._latest = link
        self._arrived.set()
        await link.request(link.wire.snapshot_sent, None, ACK_DEADLINE)
        log.info("ztunnel %d serves this node; %d pods were captured before it came", link.pid, len(named))

    def _drained(self, link: _Link, uid: str) -> None:
        waiting = self._draining.get(uid)
        if waiting is None:
            return
        waiting.discard(link)
        if not waiting:
            del self._draining[uid]
            self.on_drained(uid)

    def _forget(self, link: _Link) -> None:
        self._links.remove(link)
        for waiting in self._draining.values():
            waiting.discard(link)
        if self._latest is link:
            # An older ztunnel beside it is on its way out: nothing new is for that one.
            self._latest = None
            self._arrived = trio.Event()
        log.warning("ztunnel %d is gone", link.pid)


class _Link:
    """One ztunnel: requests one at a time, each answered before the next."""

    def __init__(self, sock: trio.socket.SocketType, drained: Callable[[_Link, str], None]) -> None:
        self.pid, self.uid, _ = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
        self.wire = AgentConnection()
        self.greeted = trio.Event()
        self._sock = sock
        self._drained = drained
        self._turn = trio.Lock()
        self._answers: deque[_Answer] = deque()
        self._scope: trio.CancelScope | None = None

    async def read(self, scope: trio.CancelScope) -> None:
        """Take packets until the other end closes; then cancel *scope*."""
        self._scope = scope
        try:
            while data := await self._receive():
                self._take(data)
        except ProtocolError as exc:
            log.error("ztunnel %d broke the protocol: %s", self.pid, exc)
        except OSError as exc:
            log.warning("ztunnel %d: %s", self.pid, exc)
        finally:
            for answer in self._answers:
                answer.fail(f"ztunnel {self.pid} went away")
        scope.cancel()

    def cancel(self) -> None:
        """End the connection."""
        if self._scope is not None:
            self._scope.cancel()

    async def request(self, encode: Callable[[], bytes], netns: int | None, deadline: float) -> str:
        """Send what *encode* makes when its turn has come; the ack's error text.

        Raises:
            Unavailable: no answer. The connection is closed then: acks come in order, so nothing could
                be told apart any more.
        """
        async with self._turn:
            answer = _Answer()
            try:
                packet = encode()
                self._answers.append(answer)
                await self._send(packet, netns)
            except (OSError, ProtocolError, trio.ClosedResourceError) as exc:
                self.cancel()
                raise Unavailable(f"ztunnel {self.pid}: {exc}") from exc
            with trio.move_on_after(deadline):
                await answer.event.wait()
            if answer.failure or not answer.event.is_set():
                self.cancel()
                raise Unavailable(
                    answer.failure or f"ztunnel {self.pid} did not answer within {deadline:g} s"
                )
            return answer.error

    async def _send(self, packet: bytes, netns: int | None) -> None:
        fds = (
            []
            if netns is None
            else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [netns]).tobytes())]
        )
        await self._sock.sendmsg([packet], fds)

    async def _receive(self) -> bytes:
        data, ancillary, flags, _ = await self._sock.recvmsg(MAX_PACKET_BYTES + 1)
        if ancillary or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            self.wire.receive_packet(data, truncated=True)
        return bytes(data)

    def _take(self, data: bytes) -> None:
        match self.wire.receive_packet(data):
            case Acked(error=error):
                self._answers.popleft().give(error)
            case Drained(uid):
                self._drained(self, uid)
            case _:
                self.greeted.set()


class _Answer:
    """What a request waits for."""

    __slots__ = ("error", "event", "failure")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.error = ""
        self.failure = ""

    def give(self, error: str) -> None:
        """The ack has come."""
        self.error = error
        self.event.set()

    def fail(self, reason: str) -> None:
        """It will not come."""
        self.failure = reason
        self.event.set()


def _adding(link: _Link, workload: WorkloadInfo) -> Callable[[], bytes]:
    return lambda: link.wire.add(workload)


def _listen(path: str) -> trio.socket.SocketType:
    Path(path).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        made.bind(path)
        os.chmod(path, 0o600)
        made.listen(BACKLOG)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return trio.socket.from_stdlib_socket(made)
