"""Following the control plane: the distribution wire's daemon end, under trio.

Floor 2: carries ``ambient.wire.xds`` over the socket that the daemon inherited. Control and its daemons
live and end together (the supervisor makes both), so a closed connection is the end, not a reason to
dial again.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import count
from types import TracebackType

import trio

from ambient.engine import collector
from ambient.engine.nursery import plain_nursery
from ambient.engine.reactor import Reactor
from ambient.engine.slices import SLICE_PAUSE, in_slices
from ambient.errors import AmbientError, ConfigError, Unavailable
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Change, Mesh
from ambient.wire import xds
from ambient.wire.frames import Frame

CONTROL_FD_VARIABLE = "AMBIENT_CONTROL_FD"
# Until the first snapshot is there nobody is served, so it is read as fast as it comes.
READ_BYTES = 256 * 1024
# Later, traffic shares the thread: so much is decoded (some 0.2 ms) between two looks at the time. Twice as
# much, while each pause woke a task, brought traffic's p99 to 2.0 of what it was, not 1.0 to 1.5.
SLICE_BYTES = 2 * 1024
# Later. After each whole read garbage is looked for among what is young: so much makes 700 objects, which
# take 0.1 ms. Measured: left to itself, the collector takes 5 ms at a time.
SLICED_READ_BYTES = 64 * 1024
# An update of as many resources is large: what it made is not looked at again. Picked, not measured.
LARGE_UPDATE = 1_000
# A certificate that has not come by then is asked for again later; picked, not measured.
CERTIFICATE_DEADLINE = 10.0
# What control has not read yet; beyond it control hangs, and the daemon says so. Picked, not measured.
MAX_BACKLOG_BYTES = 16 * 1024 * 1024

OnUpdate = Callable[[], Iterable[None] | None]
OnPods = Callable[[tuple[xds.NodePod, ...]], None]
OnFrame = Callable[[Frame], None]


@dataclass(slots=True)
class Heard:
    """What control has said so far.

    Attributes:
        addresses: Updates that were about workloads or services.
        authorizations: Updates that were about policies.
        received: Bytes.
        closed: Connections that control closed.
        failed: Connections that ended otherwise.
    """

    addresses: int = 0
    authorizations: int = 0
    received: int = 0
    closed: int = 0
    failed: int = 0

    def count(self, change: Change) -> None:
        """One update; a single one may be about both."""
        addresses = change.workloads, change.services, change.removed_workloads, change.removed_services
        self.addresses += any(addresses)
        self.authorizations += any((change.policies, change.removed_policies))


class Follow:
    """Keeps a ``Mesh`` equal to what control says::

        follow = Follow(control_socket())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow.run)
            await follow.synchronised()

    Args:
        slice_bytes: What is decoded at a time; more where no traffic waits.

    Attributes:
        mesh: Changed in place, between two callbacks of the reactor.
        on_update: Called after each applied update; an ``AmbientError`` becomes the ack's error. What is
            long it returns as steps, between which traffic has its turn; the ack follows the last one.
        on_pods: The agent's: called with the full list of its node's pods, then acked likewise.
        on_frame: kind -> callback for frames of the daemons' own.
        heard: Counts, for metrics.
    """

    def __init__(
        self,
        sock: socket.socket,
        mesh: Mesh | None = None,
        *,
        slice_bytes: int = SLICE_BYTES,
        reactor: Reactor | None = None,
    ) -> None:
        self._slice_bytes = slice_bytes
        self._reactor = reactor
        self.mesh = mesh if mesh is not None else Mesh()
        self.on_update: OnUpdate | None = None
        self.on_pods: OnPods | None = None
        self.on_frame: dict[str, OnFrame] = {}
        self.heard = Heard()
        self._end = xds.DaemonEnd()
        sock.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._synchronised = trio.Event()
        self._numbers = count(1)
        self._asked: dict[int, _Asked] = {}
        self._out: deque[bytes] = deque([self._end.hello()])
        self._out_bytes = 0
        self._wake = trio.Event()

    async def run(self) -> None:
        """Follow until cancelled.

        Raises:
            Unavailable: control closed the connection, or does not read.
            RemoteProtocolError: control broke the protocol.
        """
        try:
            async with plain_nursery() as nursery:
                nursery.start_soon(self._write)
                nursery.start_soon(self._read)
        finally:
            self._sock.close()
            for asked in self._asked.values():
                asked.answered.set()

    @property
    def knows(self) -> bool:
        """Whether there is a snapshot to go by."""
        return self._synchronised.is_set()

    async def synchronised(self) -> None:
        """Return when the first snapshot is applied."""
        await self._synchronised.wait()

    def assume(self, change: Change) -> bool:
        """Go by *change*, which an earlier process knew, until control speaks; False if it has spoken."""
        if self._synchronised.is_set():
            return False
        self.mesh.apply(change)
        for _ in self._told():
            pass
        self._synchronised.set()
        return True

    def report(self, report: xds.PodReport) -> None:
        """The agent's word on one pod."""
        self._queue(self._end.report(report))

    def send(self, frame: Mapping[str, object]) -> None:
        """Queue a frame of the daemons' own, for example ``{"kind": "report", ...}``; order is kept."""
        values = dict(frame)
        self._queue(self._end.extra(str(values.pop("kind")), **values))

    async def certificate(self, identity: SpiffeId, csr: bytes) -> xds.Certified:
        """Have *csr* (DER) signed.

        Raises:
            Unavailable: control refused it, went away, or did not answer in time.
        """
        number = next(self._numbers)
        asked = self._asked[number] = _Asked()
        self._queue(self._end.csr(number, identity, csr))
        try:
            with trio.move_on_after(CERTIFICATE_DEADLINE):
                await asked.answered.wait()
        finally:
            del self._asked[number]
        match asked.answer:
            case xds.Certified() as certified:
                return certified
            case xds.CertificateRefused(_, error):
                raise Unavailable(f"no certificate for {identity}: {error}")
            case _:
                raise Unavailable(f"no certificate for {identity}: control does not answer")

    async def _read(self) -> None:
        while True:
            size = SLICED_READ_BYTES if self._synchronised.is_set() else READ_BYTES
            try:
                data = await self._sock.recv(size)
            except OSError as exc:
                self.heard.failed += 1
                raise Unavailable(f"control is gone: {exc.strerror or exc}") from exc
            self.heard.received += len(data)
            events: list[xds.DaemonEvent] = []
            await self._take(self._decoding(data, events))
            for event in events:
                await self._obey(event)
            if not data:
                self.heard.closed += 1
                raise Unavailable("control closed the connection")
            # A large update comes in many reads: let the daemon's other tasks, and traffic, run between them.
            if len(data) == SLICED_READ_BYTES:
                collector.look_at_the_young()
                await trio.sleep(SLICE_PAUSE)
            else:
                await trio.lowlevel.checkpoint()

    def _decoding(self, data: bytes, events: list[xds.DaemonEvent]) -> Iterable[None]:
        for at in range(0, len(data) or 1, self._slice_bytes):  # Also of nothing: that is the end.
            events += self._end.receive_data(data[at : at + self._slice_bytes])
            yield

    async def _write(self) -> None:
        while True:
            while self._out:
                data = memoryview(self._out[0])
                while data:
                    try:
                        data = data[await self._sock.send(data) :]
                    except OSError as exc:
                        raise Unavailable(f"control is gone: {exc.strerror or exc}") from exc
                self._out_bytes -= len(self._out.popleft())
            self._wake = trio.Event()
            await self._wake.wait()

    def _queue(self, data: bytes) -> None:
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > MAX_BACKLOG_BYTES:
            raise Unavailable("control does not read")
        self._wake.set()

    async def _apply(self, change: Change) -> None:
        await self._take(self.mesh.applying(change))
        await self._take(self._told())
        if change.size >= LARGE_UPDATE:
            collector.keep()

    def _told(self) -> Iterable[None]:
        """What the mesh's being another one makes the daemon do, in steps."""
        return (self.on_update() if self.on_update is not None else None) or ()

    async def _take(self, steps: Iterable[None]) -> None:
        """Take *steps*; once somebody is served, traffic comes in between."""
        if self._synchronised.is_set():
            await in_slices(steps, self._reactor)
        else:
            for _ in steps:
                pass

    async def _obey(self, event: xds.DaemonEvent) -> None:
        match event:
            case xds.Updated(nonce, change):
                self.heard.count(change)
                with _Acknowledged(self, nonce):
                    await self._apply(change)
                if change.snapshot:
                    self._synchronised.set()
            case xds.PodsNamed(nonce, pods):
                with _Acknowledged(self, nonce):
                    if self.on_pods is not None:
                        self.on_pods(pods)
            case xds.Certified(number) | xds.CertificateRefused(number):
                asked = self._asked.get(number)
                if asked is not None:
                    asked.answer = event
                    asked.answered.set()
            case xds.Extra(frame):
                handler = self.on_frame.get(str(frame.get("kind")))
                if handler is not None:
                    handler(frame)


class _Asked:
    """A CSR under way."""

    __slots__ = ("answer", "answered")

    def __init__(self) -> None:
        self.answer: xds.Certified | xds.CertificateRefused | None = None
        self.answered = trio.Event()


class _Acknowledged:
    """Acks at the end of the block; an ``AmbientError`` inside becomes the ack's text."""

    def __init__(self, follow: Follow, nonce: int) -> None:
        self._follow = follow
        self._nonce = nonce

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if exc is not None and not isinstance(exc, AmbientError):
            return False
        self._follow._queue(self._follow._end.ack(self._nonce, str(exc) if exc else ""))
        return True


def control_socket(environment: Mapping[str, str] = os.environ) -> socket.socket:
    """The socket inherited as ``AMBIENT_CONTROL_FD``; children of ours do not inherit it again.

    Raises:
        ConfigError: the variable is missing or is no socket.
    """
    text = environment.get(CONTROL_FD_VARIABLE, "")
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"{CONTROL_FD_VARIABLE} is {text!r}, must be the number of a socket")
    try:
        sock = socket.socket(fileno=int(text))
    except OSError as exc:
        raise ConfigError(f"{CONTROL_FD_VARIABLE} names no socket: {exc.strerror}") from exc
    sock.set_inheritable(False)
    return sock
