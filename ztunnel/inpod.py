"""ztunnel's end of ZDS: follows the node agent, enrolls and removes workloads as it says.

Running proxies survive a lost agent; on reconnection its snapshot says which of them are gone.
"""

from __future__ import annotations

import array
import logging
import os
import random
import socket
import struct
from collections.abc import Callable
from contextlib import suppress

import trio

from ambient.errors import RemoteProtocolError, Unavailable
from ambient.wire.zds import MAX_PACKET_BYTES, SnapshotSent, WorkloadAdded, WorkloadRemoved, ZtunnelConnection
from ztunnel.network import PodNetwork
from ztunnel.proxies import Proxies

log = logging.getLogger("ztunnel")

# ztunnel's figures.
FIRST_BACKOFF = 0.01
MAX_BACKOFF = 15.0

# One more than may come, so that a second descriptor is seen and not cut off silently.
_ANCILLARY_BYTES = socket.CMSG_SPACE(8 * array.array("i").itemsize)


def backoff(failures: int, chance: float) -> float:
    """Seconds to wait after so many failures in a row; *chance* in [0, 1) spreads them by a fifth."""
    return min(MAX_BACKOFF, FIRST_BACKOFF * 2.0 ** min(failures, 20)) * (0.8 + 0.4 * chance)


class AgentFollower:
    """Keeps ``Proxies`` as the agent wants them.

    Args:
        path: The agent's socket.
        network: Makes the pod's network from its namespace, which becomes the network's to close.
            Raises OSError if the descriptor is no network namespace of a pod.
    """

    def __init__(self, path: str, proxies: Proxies, network: Callable[[int], PodNetwork]) -> None:
        self.snapshot_received = False
        self._path = path
        self._proxies = proxies
        self._network = network
        self._namespaces: dict[str, tuple[int, int]] = {}
        self._drained: dict[str, None] = {}
        self._wake = trio.Event()
        self._scope = trio.CancelScope()
        proxies.on_drained = self.drained

    def drained(self, uid: str) -> None:
        """Tell the agent, now or when it is back."""
        self._drained[uid] = None
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
        await sock.send(connection.hello())
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_drained, connection, sock)
            try:
                while await self._one_request(connection, sock):
                    pass
            except (RemoteProtocolError, OSError) as exc:
                failure = exc  # Raised again outside, where the nursery does not wrap it.
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _one_request(self, connection: ZtunnelConnection, sock: trio.socket.SocketType) -> bool:
        data, fds, truncated = await _receive(sock)
        if not data and not fds:
            return False
        try:
            event = connection.receive_packet(data, fds, truncated)
        except RemoteProtocolError:
            for fd in fds:
                os.close(fd)
            raise
        await sock.send(connection.ack(await self._act(event)))
        return True

    async def _act(self, event: WorkloadAdded | WorkloadRemoved | SnapshotSent) -> str:
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
                self.snapshot_received = True
        return ""

    async def _add(self, event: WorkloadAdded) -> None:
        uid = event.workload.uid
        status = os.fstat(event.netns_fd)
        namespace = (status.st_dev, status.st_ino)
        if uid in self._proxies.running() and self._namespaces.get(uid) == namespace:
            os.close(event.netns_fd)
            return
        try:
            network = self._network(event.netns_fd)
        except OSError:
            os.close(event.netns_fd)
            raise
        await self._proxies.add(event.workload, network)
        self._namespaces[uid] = namespace
        self._drained.pop(uid, None)
        log.info("serving %s as %s", uid, event.workload.identity)

    async def _remove(self, uid: str) -> None:
        self._namespaces.pop(uid, None)
        log.info("draining %s", uid)
        if not await self._proxies.remove(uid) and not self._proxies.is_draining(uid):
            # Nothing of it is left, and the agent waits to hear so.
            self.drained(uid)

    async def _report_drained(self, connection: ZtunnelConnection, sock: trio.socket.SocketType) -> None:
        while True:
            for uid in tuple(self._drained):
                try:
                    await sock.send(connection.drained(uid))
                except OSError:
                    return  # The other direction sees it too; the uid is kept for the next connection.
                self._drained.pop(uid, None)
            await self._wake.wait()
            self._wake = trio.Event()


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
    data, ancillary, flags, _ = await sock.recvmsg(MAX_PACKET_BYTES + 1, _ANCILLARY_BYTES)
    fds = array.array("i")
    for level, kind, raw in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    for fd in fds:
        with suppress(OSError):
            os.set_inheritable(fd, False)
    return data, list(fds), bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC))
