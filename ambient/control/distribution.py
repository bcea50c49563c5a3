"""Distribution: one link per attached daemon, which is told what changed and remembered to have applied it.

Floor 3, under trio. A link never queues updates: when it can send, it sends the difference between what
the daemon was told last and what is true now, so a slow daemon costs no memory and skips what is past.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from ambient.control.bell import Bell
from ambient.control.registry_plan import Registry, change_between, is_empty
from ambient.errors import AmbientError, ProtocolError
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Change
from ambient.pki.authority import Issued
from ambient.wire.frames import Frame
from ambient.wire.xds import (
    Acked,
    CertificateAsked,
    ControlEnd,
    Extra,
    Greeted,
    NodePod,
    PodReport,
    PodReported,
)

log = logging.getLogger("ambient.control.distribution")

READ_BYTES = 64 * 1024
# How long everybody waits for a daemon that does not ack; after that it counts as stuck, and nobody does
# until it acks again. An update is applied in milliseconds; picked, not measured.
ACK_SECONDS = 10.0
# Updates that a daemon has not acked yet; what is new meanwhile goes out together: who is busy is not told of
# every pod of a thousand one by one. The second one keeps the line busy. Picked.
MAX_UNACKED = 2
# Between two updates of a link. The first goes out at once; of a stream of them, such as pods that are
# enrolled at a steady rate, a daemon takes twenty a second, however many there are: each costs it a look at
# everything that it carries. By them peers learn where they may speak HBONE; captures wait for none. Picked.
UPDATE_SECONDS = 0.05
# Of all links together, where there are many: on a small machine they are each other's load. Eight daemons of
# four nodes take ten each; those of a hundred nodes still four. Picked.
UPDATES_PER_SECOND = 80
LONGEST_UPDATE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as the supervisor said when it attached the link.

    Attributes:
        role: ``"agent"``, ``"ztunnel"``, ``"waypoint"`` or ``"sidecar"``.
        pod: The pod's uid for a waypoint or a sidecar, else "".
    """

    role: str
    node: str
    pod: str = ""

    def __str__(self) -> str:
        return f"{self.role}/{self.pod or self.node}"


class Owner(Protocol):
    """What a link needs from the control plane it belongs to."""

    def registry(self) -> Registry:
        """What is true now."""

    def node_pods(self, node: str) -> tuple[NodePod, ...]:
        """What the agent of *node* is to be told."""

    def certify(self, peer: Peer, identity: SpiffeId, csr: bytes) -> Issued:
        """Sign, or raise an ``AmbientError`` that says why not."""

    def pod_reported(self, peer: Peer, report: PodReport) -> None:
        """An agent said where a pod stands."""

    def frame_received(self, peer: Peer, frame: Frame) -> None:
        """A daemon said something of the daemons' own."""

    def link_changed(self) -> None:
        """Something was acked, or a link came or went."""


class Differences:
    """What lies between two registries, worked out once for all links: it costs a look at every workload."""

    def __init__(self) -> None:
        self._version = -1
        self._since: dict[int, Change] = {}

    def between(self, before: Registry | None, after: Registry) -> Change:
        """The change from *before* (None: from nothing) to *after*."""
        if after.version != self._version:
            self._version, self._since = after.version, {}
        since = -1 if before is None else before.version
        if since not in self._since:
            self._since[since] = change_between(before, after)
        return self._since[since]


def update_seconds(links: int) -> float:
    """How long a link waits for more news, where there are so many links."""
    return min(max(UPDATE_SECONDS, links / UPDATES_PER_SECOND), LONGEST_UPDATE_SECONDS)


class Link:
    """Control's end of the connection to one daemon.

    Args:
        crowd: How many links there are.
    """

    def __init__(
        self,
        peer: Peer,
        stream: trio.abc.Stream,
        owner: Owner,
        bell: Bell,
        ack_seconds: float = ACK_SECONDS,
        differences: Differences | None = None,
        crowd: Callable[[], int] = lambda: 1,
    ) -> None:
        self.peer = peer
        self._crowd = crowd
        self._differences = differences or Differences()
        self._ack_seconds = ack_seconds
        self.greeted = False
        self.stuck = False
        self.error = ""
        self._stream = stream
        self._owner = owner
        self._bell = bell
        self._wake = Bell()
        self._end = ControlEnd()
        self._answers: list[bytes] = []
        self._told: Registry | None = None
        self._told_pods: tuple[NodePod, ...] | None = None
        # Nonce -> the version that the daemon had before: one update may carry many versions.
        self._unacked: dict[int, int] = {}
        self._acks = Bell()
        self._quiet_until = -math.inf
        # When its sender wakes by itself; while it is awake, any news may be the next.
        self._asleep_until = math.inf

    def has_applied(self, version: int) -> bool:
        """Whether the daemon has applied the registry *version*, or one after it."""
        told = self._told is not None and self._told.version >= version
        return told and all(since >= version for since in self._unacked.values())

    def say(self, kind: str, **values: Any) -> None:
        """Queue a frame of the daemons' own; the caller bounds how many."""
        self._answers.append(self._end.extra(kind, **values))
        self._wake.ring()

    def wake(self) -> None:
        """There may be something new to tell; whoever has nothing to say before it wakes anyway sleeps on.

        All links are told of every pod that moves, and most have nothing to say at once.
        """
        if self._answers or self._has_pods() or self._due() < self._asleep_until:
            self._wake.ring()

    async def run(self) -> None:
        """Serve the daemon until it goes away or breaks the wire."""
        try:
            async with self._stream, trio.open_nursery() as nursery:
                nursery.start_soon(self._send)
                nursery.start_soon(self._watch_acks)
                await self._receive()
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("%s went away", self.peer)
        except* ProtocolError as group:
            self.error = str(group.exceptions[0])
            log.error("%s broke the distribution wire: %s", self.peer, self.error)

    async def _receive(self) -> None:
        async for data in self._stream:
            events = self._end.receive_data(bytes(data))
            for event in events:
                self._take(event)
            if events:
                self.wake()
                self._bell.ring()
                self._owner.link_changed()
        self._end.receive_data(b"")

    def _take(self, event: Greeted | Acked | CertificateAsked | PodReported | Extra) -> None:
        match event:
            case Greeted():
                self.greeted = True
            case Acked(nonce, error):
                self._acked(nonce, error)
            case CertificateAsked(number, identity, csr):
                self._answers.append(self._certificate(number, identity, csr))
            case PodReported(report):
                self._owner.pod_reported(self.peer, report)
            case Extra(frame):
                self._owner.frame_received(self.peer, frame)

    def _acked(self, nonce: int, error: str) -> None:
        self._unacked.pop(nonce, None)
        self.stuck = False
        self._acks.ring()
        if error:
            self.error = error
            log.error("%s could not apply an update: %s", self.peer, error)

    def _certificate(self, number: int, identity: SpiffeId, csr: bytes) -> bytes:
        try:
            issued = self._owner.certify(self.peer, identity, csr)
        except AmbientError as exc:
            log.warning("refused a certificate: peer=%s identity=%s reason=%r", self.peer, identity, str(exc))
            return self._end.refuse(number, str(exc))
        return self._end.certificate(number, issued.chain, issued.roots, issued.not_after)

    async def _send(self) -> None:
        while True:
            ring = self._wake.next()
            if data := self._pending():
                await self._stream.send_all(data)
                continue
            self._asleep_until = self._due()
            with trio.move_on_at(self._asleep_until):
                await ring.wait()
            self._asleep_until = math.inf

    async def _watch_acks(self) -> None:
        """Say so if the oldest update stays unacked: what waits for everybody must not wait for ever."""
        while True:
            await self._acks.until(lambda: bool(self._unacked) and not self.stuck)
            oldest = min(self._unacked)
            with trio.move_on_after(self._ack_seconds):
                await self._acks.until(lambda nonce=oldest: nonce not in self._unacked)  # type: ignore[misc]
                continue
            self.stuck = True
            log.error("%s does not answer: no ack for %g s", self.peer, self._ack_seconds)
            self._owner.link_changed()

    def _pending(self) -> bytes:
        """Everything the daemon is to be told now; b"" if nothing."""
        if not self.greeted:
            return b""
        answers, self._answers = self._answers, []
        return b"".join([*answers, self._update(), self._pods()])

    def _update(self) -> bytes:
        now = self._owner.registry()
        if self._knows(now) or len(self._unacked) >= MAX_UNACKED or trio.current_time() < self._quiet_until:
            return b""
        self._quiet_until = trio.current_time() + update_seconds(self._crowd())
        change = self._differences.between(self._told, now)
        since = -1 if self._told is None else self._told.version
        self._told = now
        if is_empty(change):
            self._owner.link_changed()  # Nobody acks nothing, and somebody may wait for this version.
            return b""
        nonce, data = self._end.update(change)
        self._unacked[nonce] = since
        self._acks.ring()
        return data

    def _knows(self, registry: Registry) -> bool:
        return self._told is not None and self._told.version == registry.version

    def _due(self) -> float:
        """When to look though nobody rings: what is held back is due then, be it that the time has come."""
        waits_for_acks = len(self._unacked) >= MAX_UNACKED
        nothing = not self.greeted or waits_for_acks or self._knows(self._owner.registry())
        return math.inf if nothing else self._quiet_until

    def _has_pods(self) -> bool:
        """Whether an agent is to hear of its pods; a list that says the same is the same object."""
        return self.peer.role == "agent" and self._owner.node_pods(self.peer.node) is not self._told_pods

    def _pods(self) -> bytes:
        if not self._has_pods():
            return b""
        before, self._told_pods = self._told_pods, self._owner.node_pods(self.peer.node)
        return b"" if before == self._told_pods else self._end.pods(self._told_pods)[1]


class Distribution:
    """All links, and the question whether everybody knows."""

    def __init__(self, owner: Owner, bell: Bell) -> None:
        self._owner = owner
        self._bell = bell
        self._links: list[Link] = []
        self._differences = Differences()

    def links(self) -> tuple[Link, ...]:
        """The links that live."""
        return tuple(self._links)

    def wake(self) -> None:
        """Tell every daemon what is new. Not at every ring: acks are many, and news are few."""
        for link in self._links:
            link.wake()

    async def serve(self, peer: Peer, sock: socket.socket) -> None:
        """Run the link to *peer* over *sock*, which becomes ours to close."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        link = Link(
            peer,
            stream,
            self._owner,
            self._bell,
            differences=self._differences,
            crowd=lambda: len(self._links),
        )
        self._links.append(link)
        try:
            await link.run()
        finally:
            self._links.remove(link)
            self._owner.link_changed()

    def all_applied(self, version: int) -> bool:
        """Whether every daemon that is there and answers has applied registry *version*."""
        return all(link.has_applied(version) for link in self._links if link.greeted and not link.stuck)

    def laggards(self, version: int) -> tuple[Peer, ...]:
        """Who has not."""
        return tuple(each.peer for each in self._links if each.greeted and not each.has_applied(version))

    async def settled(self, version: int, seconds: float = ACK_SECONDS) -> tuple[Peer, ...]:
        """Wait until every daemon that answers has applied *version*; return who has not after all."""
        with trio.move_on_after(seconds):
            await self._bell.until(lambda: self.all_applied(version))
        return self.laggards(version)


def connected(links: Iterable[Link], role: str, matches: Callable[[Peer], bool]) -> bool:
    """Whether a daemon in *role* for which *matches* holds said hello."""
    return any(each.greeted and each.peer.role == role and matches(each.peer) for each in links)
