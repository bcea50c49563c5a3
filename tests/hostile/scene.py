"""One enrolled pod, a neighbour that is served, and somebody hostile; and the oracle of every case.

The oracle: the process lives, the neighbour's connection goes on and it may make another, every
connection and descriptor of the attack is given back, the application got nothing it should not have,
and there is exactly one record of the refusal, with the reason that the case names, and a counter that grew.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import trio

from ambient.engine.channel import NullReceiver
from ambient.engine.tunnel import TunnelStream
from ambient.model.limits import Limits
from ambient.model.record import AccessRecord
from ambient.model.workload import Workload
from tests.flow.loopback import LoopbackMesh, LoopbackNetwork, fresh_ip, run_mesh
from tests.flow.test_ztunnel_inbound import Peer
from tests.hostile.forge import Signer
from tests.hostile.peers import PATIENCE, Door

APP_PORT = 8080

Attack = Callable[[Door], None]
Prepare = Callable[["Scene"], None]

# Which numbers of reference/threats.md have a test; ``test_every_number`` asks.
COVERED: set[str] = set()


@dataclass(frozen=True)
class Case:
    """One hostile input.

    Attributes:
        number: Of reference/threats.md, section 5.
        reason: What the record says, as a regular expression; None: it is served, or ignored.
        records: How many refusals of that reason there must be.
        others: Whether there may be others: each request that the attack made has its own.
        app_bytes: What the application may get.
    """

    number: str
    name: str
    attack: Attack
    reason: str | None
    records: int = 1
    others: bool = False
    app_bytes: bytes = b""
    limits: Limits = field(default_factory=Limits)
    prepare: Prepare = lambda scene: None

    def __post_init__(self) -> None:
        COVERED.add(self.number)

    @property
    def id(self) -> str:
        """Of the test."""
        return f"{self.number}-{self.name}"


class Collected(NullReceiver):
    """What a stream of the neighbour's got back."""

    def __init__(self) -> None:
        self.data = b""

    def data_received(self, data: memoryview) -> None:
        self.data += bytes(data)


class Scene:
    """Who is there.

    Attributes:
        web: Who is hostile, with an identity of the mesh.
        api: The pod.
        bytes: What its application got, by the client's address.
        network: The pod's.
        full: What keeps an accept queue full; closed at the end.
    """

    network: LoopbackNetwork

    def __init__(self, mesh: LoopbackMesh) -> None:
        self.mesh = mesh
        self.web, self.api, self.friend = (mesh.workload(name) for name in ("web", "api", "friend"))
        self.bytes: dict[str, bytes] = {}
        self._neighbour = Peer(mesh, self.friend)
        self._stream: TunnelStream | None = None
        self._collected = Collected()
        self.full: list[socket.socket] = []

    @property
    def authority(self) -> str:
        """Of the application."""
        return f"{self.api.addresses[0]}:{APP_PORT}"

    def unanswered(self) -> tuple[str, int]:
        """An address whose accept queue is full: connecting to it takes for ever."""
        listener = socket.create_server((fresh_ip(), 0), backlog=0)
        self.full += [listener, socket.create_connection(listener.getsockname())]
        name = listener.getsockname()
        return str(name[0]), int(name[1])

    async def door(self) -> Door:
        """For the hostile one."""
        svid = await self.mesh.svids.get(self.web.identity)
        address = (self.api.addresses[0], 15008)
        ca = Signer.of(self.mesh.svids.authority)
        ip = self.web.addresses[0]
        return Door(address, ip, svid, self.authority, ca, fresh_ip(), lambda: self.bytes.get(ip, b""))

    async def serve(self, stream: trio.SocketStream) -> None:
        """The application: remembers and echoes, and does not mind who resets it."""
        async with stream:
            with suppress(OSError, trio.BrokenResourceError):
                ip = stream.socket.getpeername()[0]
                async for data in stream:
                    self.bytes[ip] = self.bytes.get(ip, b"") + data
                    await stream.send_all(data)
                await stream.send_eof()

    async def meet_neighbour(self) -> None:
        """A tunnel with a stream that stays open."""
        await self._neighbour.connect(self.api)
        self._stream = await self._open(self._neighbour)
        self._stream.start(self._collected)

    async def _open(self, peer: Peer) -> TunnelStream:
        stream = await peer.ask(self.authority)
        assert isinstance(stream, TunnelStream), stream
        return stream

    async def neighbour_is_served(self) -> None:
        """On the old stream, on the old tunnel, and on a new one."""
        assert self._stream is not None
        self._collected.data = b""
        self._stream.write(b"still there")
        await patiently(lambda: self._collected.data == b"still there", "the neighbour gets no answer")
        newcomer = Peer(self.mesh, self.friend)
        await newcomer.connect(self.api)
        for peer in (self._neighbour, newcomer):
            stream = await self._open(peer)
            stream.start(NullReceiver())
            stream.close()
        assert newcomer.tunnel is not None
        newcomer.tunnel.close()

    def held(self) -> tuple[int, ...]:
        """What must be as before: connections, tunnels, windows, descriptors."""
        now = self.mesh.proxies.all()[0].statistics()
        return (
            now.connections,
            now.inbound_tunnels,
            -self.mesh.reactor.windows.left,
            len(os.listdir("/proc/self/fd")),
        )

    def counted(self) -> int:
        """Connections that the metrics count as ended badly, or as never established."""
        series = self.mesh.journal.metrics._series.values()
        return sum(sum(each.failed.values()) + sum(each.closed.values()) for each in series)

    def refusals(self) -> list[AccessRecord]:
        """Records of what did not end well, the neighbour's apart."""
        friend = self.friend.addresses[0]
        return [
            record
            for record in self.mesh.journal.records
            if record.error and not record.source.address.startswith(f"{friend}:")
        ]


async def patiently(condition: Callable[[], object], complaint: str) -> None:
    """Wait for *condition*."""
    with trio.move_on_after(PATIENCE):
        while not condition():  # noqa: ASYNC110 - a condition of the reactor has no event.
            await trio.sleep(0.005)
        return
    raise AssertionError(complaint)


@asynccontextmanager
async def scene_of(mesh: LoopbackMesh, limits: Limits | None = None) -> AsyncIterator[Scene]:
    """Everybody in place, the neighbour served."""
    mesh.reactor.limits = limits or Limits()
    scene = Scene(mesh)
    scene.network = await mesh.enroll(scene.api)
    listener = trio.socket.from_stdlib_socket(socket.create_server((scene.api.addresses[0], APP_PORT)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, scene.serve, [trio.SocketListener(listener)])
        await scene.meet_neighbour()
        try:
            yield scene
        finally:
            nursery.cancel_scope.cancel()
            for sock in scene.full:
                sock.close()


def play(case: Case) -> None:
    """Run *case* under the oracle."""

    async def body(mesh: LoopbackMesh) -> None:
        async with scene_of(mesh, case.limits) as scene:
            door = await scene.door()
            case.prepare(scene)
            # A thread of trio's costs descriptors of its own once: not the attack's.
            await trio.to_thread.run_sync(lambda: None)
            before, counted = scene.held(), scene.counted()
            await trio.to_thread.run_sync(partial(case.attack, door))
            if case.reason is not None:
                await patiently(lambda: scene.counted() > counted, "no counter grew")
            await judge(scene, before, case)

    run_mesh(body, seconds=90)


async def judge(scene: Scene, before: Iterable[int], case: Case) -> None:
    """The oracle."""
    wanted = case.records if case.reason is not None else 0
    said = lambda: [record.error for record in scene.refusals()]  # noqa: E731 - for the complaint.
    named = lambda: [error for error in said() if case.reason and re.search(case.reason, error)]  # noqa: E731
    await patiently(lambda: len(named()) >= wanted, f"no record: {said()}")
    await scene.neighbour_is_served()
    back = lambda: all(now <= then for now, then in zip(scene.held(), before, strict=True))  # noqa: E731
    await patiently(back, f"not given back: {scene.held()}, before: {before}")
    assert len(named()) == wanted, said()
    assert case.others or named() == said(), said()
    ip = scene.web.addresses[0]
    assert scene.bytes.get(ip, b"") == case.app_bytes


def identity_of(workload: Workload) -> str:
    """Its SPIFFE ID as text."""
    return str(workload.identity)
