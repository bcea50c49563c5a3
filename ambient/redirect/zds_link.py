"""One ztunnel at the agent's ZDS socket: requests as they come, answers in the same order."""

from __future__ import annotations

import logging
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence

import trio

from ambient.engine.cpu_wait import cpu_wait
from ambient.engine.rights import descriptors, rights, room
from ambient.errors import ProtocolError, Unavailable
from ambient.redirect.fd_store import close_all
from ambient.redirect.pids import shown_pid
from ambient.wire.zds import (
    MAX_LISTENERS,
    MAX_PACKET_BYTES,
    Acked,
    AgentConnection,
    Drained,
    Greeted,
    KeyPassed,
    ListenersPassed,
)

log = logging.getLogger("agent")

# One more than may come, so that a descriptor too many is seen and not cut off silently.
_ANCILLARY_BYTES = room(MAX_LISTENERS + 1)


# A ztunnel that gets no CPU is waited for longer, but not for ever: so many times as long. Picked.
MOST_PATIENCE = 12


class ZtunnelLink:
    """One ztunnel: many requests may be under way, and their answers come in order.

    Args:
        drained: Told the uid of each workload of which this ztunnel has nothing left.
        passed: Given what is to be held for the next ztunnel; the descriptors are then its own.
        starved: Seconds that the process of that number has waited for a CPU so far.

    Attributes:
        retired: Whether a newer ztunnel has taken over from this one.
        settled: Set when it has let go of everything that its snapshot did not name, or is gone.
    """

    def __init__(
        self,
        sock: trio.socket.SocketType,
        drained: Callable[[ZtunnelLink, str], None],
        passed: Callable[[ZtunnelLink, ListenersPassed | KeyPassed], None],
        starved: Callable[[int], float] = cpu_wait,
    ) -> None:
        pid, self.uid, _ = struct.unpack(
            "3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        )
        # As /proc and people know it: who holds a pod's ports is read there.
        self.pid = shown_pid(pid)
        self.wire = AgentConnection()
        self.greeted = trio.Event()
        self.settled = trio.Event()
        self._sock = sock
        self._drained = drained
        self._passed = passed
        self.retired = False
        self._turn = trio.Lock()
        self._answers: deque[_Answer] = deque()
        self._heard = self._starved_then = 0.0
        self._starved = starved
        self._scope: trio.CancelScope | None = None

    async def read(self, scope: trio.CancelScope) -> None:
        """Take packets until the other end closes; then cancel *scope*."""
        self._scope = scope
        try:
            while await self._receive():
                pass
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

    async def request(self, encode: Callable[[], bytes], fds: Sequence[int], deadline: float) -> str:
        """Send what *encode* makes when its turn has come, with *fds* beside it; the ack's error text.

        Raises:
            Unavailable: no answer. The connection is closed then: acks come in order, so nothing could
                be told apart any more.
        """
        async with self._turn:
            try:
                packet = encode()
                # Answers come in order: whoever asks behind a patient one has to be as patient.
                patience = max(deadline, self._answers[-1].patience if self._answers else 0.0)
                if not self._answers:
                    self._note_heard()
                answer = _Answer(patience)
                self._answers.append(answer)
                await self._send(packet, fds)
            except (OSError, ProtocolError, trio.ClosedResourceError) as exc:
                self.cancel()
                raise Unavailable(f"ztunnel {self.pid}: {exc}") from exc
        await self._wait(answer)
        if answer.failure or not answer.event.is_set():
            self.cancel()
            raise Unavailable(answer.failure or f"ztunnel {self.pid} did not answer within {patience:g} s")
        return answer.error

    async def _wait(self, answer: _Answer) -> None:
        """Return when it has come, or when nothing at all has come for too long."""
        while not answer.event.is_set() and trio.current_time() < (due := self._due(answer.patience)):
            with trio.move_on_at(due):
                await answer.event.wait()

    def _note_heard(self) -> None:
        self._heard = trio.current_time()
        self._starved_then = self._starved(self.pid)

    def _due(self, patience: float) -> float:
        """When it is too late; the time in which the ztunnel was kept from running is not counted.

        A starved one drains and listens like any other, later. To give it up would be to call its listeners
        somebody else's, and what it carries lost.
        """
        excused = self._starved(self.pid) - self._starved_then
        return self._heard + min(patience + excused, patience * MOST_PATIENCE)

    async def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        await self._sock.sendmsg([packet], rights(fds))

    async def _receive(self) -> bool:
        """Take one packet; False at the end of the connection."""
        data, ancillary, flags, _ = await self._sock.recvmsg(
            MAX_PACKET_BYTES + 1, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC
        )
        fds = descriptors(ancillary)
        if not data and not fds:
            return False
        try:
            self._take(data, fds, bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)))
        except ProtocolError:
            close_all(fds)
            raise
        return True

    def _take(self, data: bytes, fds: Sequence[int], truncated: bool) -> None:
        match self.wire.receive_packet(data, fds, truncated):
            case Acked(error=error):
                self._note_heard()
                self._answers.popleft().give(error)
            case Drained(uid):
                self._drained(self, uid)
            case Greeted(retired):
                self.retired = retired
                self.greeted.set()
            case ListenersPassed() | KeyPassed() as passed:
                self._passed(self, passed)


class _Answer:
    """What a request waits for."""

    __slots__ = ("error", "event", "failure", "patience")

    def __init__(self, patience: float) -> None:
        self.event = trio.Event()
        self.patience = patience
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
