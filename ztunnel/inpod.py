"""ztunnel's end of ZDS: follows the node agent, enrolls and removes workloads as it says.

Running proxies survive a lost agent; on reconnection its snapshot says which of them are gone. What we
listen on and prove ourselves with is passed to the agent as soon as it is there, before the answer to the
``add`` it belongs to: so an enrolled pod never depends on our life.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import struct
from collections.abc import Callable, Sequence

import trio

from ambient.engine.rights import descriptors, rights, room
from ambient.errors import RemoteProtocolError, Unavailable
from ambient.model.identity import SpiffeId
from ambient.wire.zds import (
    MAX_PACKET_BYTES,
    KeyPassed,
    ListenersPassed,
    Refused,
    Retired,
    SnapshotSent,
    WorkloadAdded,
    WorkloadRemoved,
    ZtunnelConnection,
    ZtunnelEvent,
)
from ztunnel.handover import NODE, Handover
from ztunnel.in_order import InOrder, Turn
from ztunnel.network import PodNetwork
from ztunnel.proxies import Proxies

log = logging.getLogger("ztunnel")

# Istio's ztunnel begins so, and goes up to 15 s. Ours does not: an agent that is back gives up pods that
# nobody has served for 5 s (``attestation_plan``), and to dial it costs nothing.
FIRST_BACKOFF = 0.01
MAX_BACKOFF = 1.0

# Requests that are carried out side by side: a node's pods (250) and some. More wait in the socket, unread.
MAX_UNDER_WAY = 256

# As many as the kernel passes beside one packet (SCM_MAX_FD): one too many is seen and answered, not cut.
MAX_DESCRIPTORS = 253
_ANCILLARY_BYTES = room(MAX_DESCRIPTORS)


def backoff(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row; *chance* in [0, 1) spreads them by a fifth."""
    return min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures, 20)) * (0.8 + 0.4 * chance)


class AgentFollower:
    """Keeps ``Proxies`` as the agent wants them.

    Args:
        path: The agent's socket.
        network: Makes the pod's network from its namespace, which becomes the network's to close.
            Raises OSError if the descriptor is no network namespace of a pod.
        handover: What the process before us left, and what is to survive us.

    Attributes:
        on_snapshot: Called whenever the agent has named everything.
        on_retired: Called once, when a newer ztunnel has taken over.
        retired: Whether one has.
    """

    def __init__(
        self, path: str, proxies: Proxies, network: Callable[[int], PodNetwork], handover: Handover
    ) -> None:
        self.on_snapshot: Callable[[], None] = lambda: None
        self.on_retired: Callable[[], None] = lambda: None
        self.snapshot_received = False
        self.retired = False
        self._handover = handover
        self._renewed: dict[SpiffeId, None] = {}
        self._own_opened = False
        self._path = path
        self._proxies = proxies
        self._network = network
        self._namespaces: dict[str, tuple[int, int]] = {}
        self._drained: dict[str, None] = {}
        self._wake = trio.Event()
        self._sending = trio.Lock()
        self._room = trio.Semaphore(MAX_UNDER_WAY)
        self._scope = trio.CancelScope()
        proxies.on_drained = self.drained

    def drained(self, uid: str) -> None:
        """Tell the agent, now or when it is back."""
        self._drained[uid] = None
        self._wake.set()

    def renewed(self, identity: SpiffeId) -> None:
        """Have the agent hold the new certificate, now or when it is back."""
        self._renewed[identity] = None
        self._wake.set()

    def own_opened(self) -> None:
        """Have the agent hold the node's own listeners."""
        self._own_opened = True
        self._wake.set()

    def stop(self) -> None:
        """Take no more orders; ``run`` returns."""
        self._scope.cancel()

    async def run(self) -> None:
        """Follow until stopped."""
        with self._scope:
            await self._follow_for_ever()

    async def _follow_for_ever(self) -> None:
        failures = 0
        while True:
            try:
                with await _connect(self._path) as sock:
                    failures = 0
                    await self._follow(sock)
                    log.warning("the node agent closed the connection")
            except RemoteProtocolError as exc:
                log.error("the node agent broke the protocol: %s", exc)
                failures += 1
            except OSError as exc:
                log.log(
                    logging.DEBUG if failures else logging.WARNING, "no node agent at %s: %s", self._path, exc
                )
                failures += 1
            self.snapshot_received = False
            await trio.sleep(backoff(failures, random.random()))

    async def _follow(self, sock: trio.socket.SocketType) -> None:
        connection = ZtunnelConnection()
        await sock.send(connection.hello(retired=self.retired))
        self.own_opened()
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, connection, sock)
            order = InOrder()
            try:
                while await self._one_request(connection, sock, order, nursery):
                    pass
            except (RemoteProtocolError, OSError) as exc:
                failure = exc  # Raised again outside, where the nursery does not wrap it.
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _one_request(
        self,
        connection: ZtunnelConnection,
        sock: trio.socket.SocketType,
        order: InOrder,
        nursery: trio.Nursery,
    ) -> bool:
        data, fds, truncated = await _receive(sock)
        if not data and not fds:
            return False
        try:
            event = connection.receive_packet(data, fds, truncated)
        except RemoteProtocolError:
            for fd in fds:
                os.close(fd)
            raise
        if isinstance(event, Refused):
            for fd in fds:
                os.close(fd)
        match event:
            case WorkloadAdded() | WorkloadRemoved():
                uid = event.workload.uid if isinstance(event, WorkloadAdded) else event.uid
                await self._room.acquire()
                turn = order.turn(uid)
                nursery.start_soon(self._side_by_side, connection, sock, event, order, turn, uid)
            case _:
                # About all of them, or about those to come: nothing overtakes it.
                turn = order.turn()
                await turn.earlier.wait()
                await self._send(sock, connection.ack(await self._act(event)))
                order.end(turn)
        return True

    async def _side_by_side(
        self,
        connection: ZtunnelConnection,
        sock: trio.socket.SocketType,
        event: WorkloadAdded | WorkloadRemoved,
        order: InOrder,
        turn: Turn,
        uid: str,
    ) -> None:
        """Carry out what concerns one workload, while others wait for theirs."""
        untouched = True
        try:
            await turn.same.wait()
            untouched = False
            error = await self._act(event)
            await turn.earlier.wait()
            if isinstance(event, WorkloadAdded) and not error:
                await self._pass_listeners(connection, sock, uid)
                await self._pass_key(connection, sock, event.workload.identity)
            await self._send(sock, connection.ack(error))
        except OSError as exc:
            log.debug("no answer to the agent: %s", exc)  # Whoever reads sees it, too.
        finally:
            self._room.release()
            if untouched and isinstance(event, WorkloadAdded):
                os.close(event.netns_fd)
            order.end(turn, uid)

    async def _act(self, event: ZtunnelEvent) -> str:
        """Do what was asked; returns the ack's error, or ""."""
        match event:
            case WorkloadAdded():
                try:
                    await self._add(event)
                except (OSError, Unavailable) as exc:
                    log.warning("cannot serve %s: %s", event.workload.uid, exc)
                    return str(exc) or type(exc).__name__
            case WorkloadRemoved(uid):
                await self._remove(uid)
            case SnapshotSent(uids):
                for uid in self._proxies.running() - uids:
                    await self._remove(uid)
                self._handover.settle()
                self.snapshot_received = True
                self.on_snapshot()
            case ListenersPassed() | KeyPassed():
                self._handover.received(event)
            case Retired():
                self._retire()
            case Refused(reason):
                log.error("the node agent asked for something that cannot be: %s", reason)
                return reason
        return ""

    def _retire(self) -> None:
        if not self.retired:
            log.info("a newer ztunnel serves this node; what is open goes on")
            self.retired = True
            self._renewed.clear()
            self._proxies.retire()
            self.on_retired()

    async def _add(self, event: WorkloadAdded) -> None:
        uid = event.workload.uid
        status = os.fstat(event.netns_fd)
        namespace = (status.st_dev, status.st_ino)
        if uid in self._proxies.running() and self._namespaces.get(uid) == namespace:
            os.close(event.netns_fd)
            self._handover.discard(uid)
            return
        try:
            network = self._network(event.netns_fd)
        except OSError:
            os.close(event.netns_fd)
            raise
        await self._proxies.add(event.workload, network, self._handover.take(uid))
        self._namespaces[uid] = namespace
        self._drained.pop(uid, None)
        log.info("serving %s as %s", uid, event.workload.identity)

    async def _remove(self, uid: str) -> None:
        self._namespaces.pop(uid, None)
        log.info("draining %s", uid)
        if not await self._proxies.remove(uid) and not self._proxies.is_draining(uid):
            # Nothing of it is left, and the agent waits to hear so.
            self.drained(uid)

    async def _report(self, connection: ZtunnelConnection, sock: trio.socket.SocketType) -> None:
        """Say what need not be asked for: who is drained, and what the agent is to hold."""
        while True:
            try:
                await self._say_all(connection, sock)
            except OSError:
                return  # The other direction sees it too; what was not said is kept for the next connection.
            await self._wake.wait()
            self._wake = trio.Event()

    async def _say_all(self, connection: ZtunnelConnection, sock: trio.socket.SocketType) -> None:
        for uid in tuple(self._drained):
            await self._send(sock, connection.drained(uid))
            self._drained.pop(uid, None)
        if self.retired:
            return
        if self._own_opened:
            self._own_opened = False
            await self._send_listeners(connection, sock, NODE, self._handover.own_listeners())
        while self._renewed:
            identity, _ = self._renewed.popitem()
            try:
                await self._pass_key(connection, sock, identity)
            except OSError:
                self._renewed[identity] = None
                raise

    async def _pass_listeners(
        self, connection: ZtunnelConnection, sock: trio.socket.SocketType, uid: str
    ) -> None:
        if uid in self._proxies.running():
            await self._send_listeners(connection, sock, uid, self._proxies.listeners(uid))

    async def _pass_key(
        self, connection: ZtunnelConnection, sock: trio.socket.SocketType, identity: SpiffeId
    ) -> None:
        fd = self._handover.sealed(identity)
        if fd is None:
            return
        try:
            await self._send(sock, connection.key(identity), [fd])
        finally:
            os.close(fd)

    async def _send_listeners(
        self,
        connection: ZtunnelConnection,
        sock: trio.socket.SocketType,
        uid: str,
        found: list[tuple[int, int]],
    ) -> None:
        if found:
            packet = connection.listeners(uid, [port for port, _ in found])
            await self._send(sock, packet, [fd for _, fd in found])

    async def _send(self, sock: trio.socket.SocketType, packet: bytes, fds: Sequence[int] = ()) -> None:
        async with self._sending:  # Answers and reports come from two tasks.
            await sock.sendmsg([packet], rights(fds))


async def _connect(path: str) -> trio.socket.SocketType:
    sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        await sock.connect(path)
        _pid, uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            raise PermissionError(f"its owner is uid {uid}")
    except BaseException:
        sock.close()
        raise
    return sock


async def _receive(sock: trio.socket.SocketType) -> tuple[bytes, list[int], bool]:
    """One packet, its descriptors, and whether either was cut; the descriptors are the caller's."""
    data, ancillary, flags, _ = await sock.recvmsg(
        MAX_PACKET_BYTES + 1, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
    )
    return data, descriptors(ancillary), bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
