"""One ztunnel at the agent's ZDS socket: requests one at a time, each answered before the next."""

from __future__ import annotations

import array
import logging
import socket
import struct
from collections import deque
from collections.abc import Callable

import trio

from ambient.errors import ProtocolError, Unavailable
from ambient.redirect.pids import shown_pid
from ambient.wire.zds import MAX_PACKET_BYTES, Acked, AgentConnection, Drained

log = logging.getLogger("agent")


class ZtunnelLink:
    """One ztunnel: requests one at a time, each answered before the next."""

    def __init__(self, sock: trio.socket.SocketType, drained: Callable[[ZtunnelLink, str], None]) -> None:
        pid, self.uid, _ = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
        # As /proc and people know it: who holds a pod's ports is read there.
        self.pid = shown_pid(pid)
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
