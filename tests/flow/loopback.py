"""A mesh without a kernel's help: pods are loopback addresses, redirection is a dictionary.

Everything else is real: the listeners, the TLS, the HBONE, the relay, and ``WorkloadProxy`` itself.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from typing import TypeVar

import pytest
import trio

from ambient.engine import host
from ambient.engine.dial import dial_socket
from ambient.engine.netns import listen_in, plain_address
from ambient.engine.reactor import Reactor
from ambient.engine.tls import Svid, TlsContext
from ambient.errors import Unavailable
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Change, Mesh
from ambient.model.policy import Policy
from ambient.model.record import AccessRecord
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Protocol, Workload
from ambient.pki.authority import Authority
from ambient.pki.request import new_request
from ambient.pki.svid import X509Svid
from ambient.wire.zds import WorkloadInfo
from ztunnel.journal import Journal
from ztunnel.metrics import Series, TcpMetrics
from ztunnel.name_server import Names
from ztunnel.network import Address, Cancellable, OnDialled, name_sockets
from ztunnel.proxies import Around, Proxies

T = TypeVar("T")

# A /16 of loopback for each test process, so that two may run at once.
_PREFIX = f"127.{64 + os.getpid() % 128}"
_numbers = itertools.count(1)


def fresh_ip() -> str:
    """A loopback address that no other test of this process uses."""
    number = next(_numbers)
    return f"{_PREFIX}.{number // 250}.{number % 250 + 1}"


class LoopbackNetwork:
    """Keeps the contract of ``PodNetwork`` on one loopback address."""

    def __init__(self, reactor: Reactor, ip: str, wanted: dict[Address, Address]) -> None:
        self.ip = ip
        self.closed = False
        self.upstreams: dict[str, Address] = {}
        self._reactor = reactor
        self._wanted = wanted

    def listen(self, port: int) -> socket.socket:
        """On this pod's address only."""
        return listen_in(None, port, host=self.ip)

    def original_destination(self, sock: socket.socket, peer: Address) -> Address:
        """What the client said it wanted; else where it came to."""
        return self._wanted.get(peer, plain_address(sock.getsockname()))

    def dial(
        self, address: Address, on_done: OnDialled, *, source: str = "", live: Container[Address] = ()
    ) -> Cancellable | None:
        """From this pod's address, or from the client's."""
        address = self.upstreams.get(address[0], address)
        return dial_socket(self._reactor, address, on_done, source=(source or self.ip, 0))

    def listen_locally(self, port: int) -> socket.socket:
        """On this pod's address, too: pods share the loopback here."""
        return listen_in(None, port, host=self.ip)

    def listen_for_names(self, port: int) -> list[tuple[socket.socket, socket.socket]]:
        """On this pod's address only."""
        return name_sockets(None, (self.ip,), port)

    def ask(self, address: Address) -> socket.socket:
        """``upstreams`` says where a name server of port 53 really is."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(self.upstreams.get(address[0], address))
        return sock

    def knocks(self) -> AbstractContextManager[Callable[[], bool]]:
        """Handshakes on loopback are never half done."""
        return nullcontext(lambda: False)

    def close(self) -> None:
        """Remember it."""
        self.closed = True


class TestSvids:
    """A certificate cache with its own CA, and none of the waiting."""

    __test__ = False

    def __init__(self) -> None:
        self.authority = Authority(time.time())
        self.forgotten: list[SpiffeId] = []
        self.refused: set[SpiffeId] = set()
        self._svids: dict[SpiffeId, Svid] = {}
        self._contexts: dict[tuple[SpiffeId, bool], TlsContext] = {}

    async def get(self, identity: SpiffeId) -> Svid:
        """Issue at once."""
        if identity in self.refused:
            raise Unavailable(f"{identity} is not of this node")
        if identity not in self._svids:
            self.renew(identity)
        return self._svids[identity]

    def renew(self, identity: SpiffeId) -> None:
        """A new key and certificate, for connections from now on."""
        key, request = new_request(identity)
        now = time.time()
        issued = self.authority.issue(request, identity, now)
        made = X509Svid.assemble(identity, key, issued.chain, issued.roots)
        self._svids[identity] = Svid(
            identity, made.chain, made.key_pem(), made.roots, made.not_before, made.not_after
        )
        for server in (True, False):
            self._contexts.pop((identity, server), None)

    def context_nowait(self, identity: SpiffeId, *, server: bool) -> TlsContext:
        """Of what was issued."""
        if identity not in self._svids:
            raise Unavailable(f"no certificate for {identity}")
        key = (identity, server)
        if key not in self._contexts:
            self._contexts[key] = TlsContext(self._svids[identity], server=server)
        return self._contexts[key]

    def inherit(self, svid: Svid) -> None:
        """Use *svid* unless there is one."""
        self._svids.setdefault(svid.identity, svid)

    def held(self, identity: SpiffeId) -> Svid | None:
        """What is used."""
        return self._svids.get(identity)

    def forget(self, identity: SpiffeId) -> None:
        """Remember that it was asked for."""
        self.forgotten.append(identity)
        self._svids.pop(identity, None)


class RecordingJournal(Journal):
    """Keeps the records as values.

    Attributes:
        lines: What was written.
        terse: Set it where the line matters, which then is all there is.
    """

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor, TcpMetrics(), write=lambda text: self.lines.extend(text.splitlines()))
        self.terse = False
        self.records: list[AccessRecord] = []
        self.lines: list[str] = []

    def ended(self, record: AccessRecord, series: Series | None) -> None:
        """Also remember it."""
        self.records.append(record)
        super().ended(record, series)


class LoopbackMesh:
    """One control plane's knowledge, and one ztunnel a pod or for all of them: they cannot tell."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.mesh = Mesh()
        self.svids = TestSvids()
        self.journal = RecordingJournal(reactor)
        self.wanted: dict[Address, Address] = {}
        self.drained: list[str] = []
        self.around = Around(
            reactor=reactor, mesh=self.mesh, svids=self.svids, journal=self.journal, chance=lambda: 0.0
        )
        self.proxies = Proxies(self.around, self.drained.append)

    def apply(self, change: Change) -> None:
        """As an update of the control plane."""
        self.mesh.apply(change)
        for _ in self.proxies.mesh_changed():
            pass

    def workload(self, name: str, protocol: Protocol = Protocol.HBONE, **fields: object) -> Workload:
        """Make one known and return it."""
        made = Workload(
            uid=f"Kubernetes//Pod/shop/{name}#1",
            name=name,
            namespace="shop",
            service_account=name,
            protocol=protocol,
            **({"addresses": (fresh_ip(),)} | fields),  # type: ignore[arg-type]
        )
        self.apply(Change(workloads=(made,)))
        return made

    def service(self, name: str, port: int) -> Service:
        """Make a service known; workloads name it by its key."""
        made = Service(
            name=name,
            namespace="shop",
            hostname=f"{name}.shop.svc.cluster.local",
            addresses=(fresh_ip(),),
            ports=(ServicePort(port=port),),
        )
        self.apply(Change(services=(made,)))
        return made

    def policies(self, *policies: Policy) -> None:
        """Set these, and only these."""
        gone = tuple(policy.key for policy in self.mesh.policies())
        self.apply(Change(policies=policies, removed_policies=gone))

    async def enroll(self, workload: Workload) -> LoopbackNetwork:
        """Serve it."""
        network = LoopbackNetwork(self.reactor, workload.addresses[0], self.wanted)
        await self.proxies.add(info_of(workload), network)
        return network

    def answer_names(self, *servers: str) -> Names:
        """Give the workloads that are enrolled from now on a name server that forwards to *servers*."""
        self.around.names = Names(servers=servers)
        return self.around.names

    async def connect(self, source: Workload, destination: Address) -> trio.SocketStream:
        """As *source*'s application, captured on its way to *destination*."""
        return await self._captured(source.addresses[0], (source.addresses[0], 15001), destination)

    async def connect_plain(self, source_ip: str, destination: Address) -> trio.SocketStream:
        """As a stranger, captured on its way into an enrolled pod."""
        return await self._captured(source_ip, (destination[0], 15006), destination)

    async def _captured(self, source_ip: str, door: Address, destination: Address) -> trio.SocketStream:
        sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        await sock.bind((source_ip, 0))
        self.wanted[sock.getsockname()] = destination
        try:
            await sock.connect(door)
        except OSError:
            sock.close()
            raise
        return trio.SocketStream(sock)

    async def records(self, count: int) -> list[AccessRecord]:
        """Wait until so many connections have ended; destination's records first."""
        await until(lambda: len(self.journal.records) >= count)
        return sorted(self.journal.records, key=lambda record: record.direction.value)


def info_of(workload: Workload) -> WorkloadInfo:
    """What the agent would say of it."""
    return WorkloadInfo(
        uid=workload.uid,
        name=workload.name,
        namespace=workload.namespace,
        service_account=workload.service_account,
        identity=workload.identity,
    )


async def until(condition: Callable[[], object]) -> None:
    """Wait for *condition*; five seconds is for ever here."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - a condition of the reactor or of a daemon has no event.
            await trio.sleep(0.002)


Serve = Callable[[trio.SocketStream], Awaitable[None]]


@asynccontextmanager
async def application(workload: Workload, port: int, serve: Serve) -> AsyncIterator[list[Address]]:
    """An application on the pod's address; yields the peers that it saw."""
    async with serving(socket.create_server((workload.addresses[0], port)), serve) as peers:
        yield peers


@asynccontextmanager
async def serving(sock: socket.socket, serve: Serve) -> AsyncIterator[list[Address]]:
    """An application on a listening socket, wherever that is."""
    peers: list[Address] = []

    async def serve_one(stream: trio.SocketStream) -> None:
        peers.append(plain_address(stream.socket.getpeername()))
        async with stream:
            with suppress(trio.BrokenResourceError):  # A reset is what some tests want.
                await serve(stream)

    sock.setblocking(False)
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve_one, [listener])
        yield peers
        nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    """Everything back, then the end of file."""
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def read_all(stream: trio.SocketStream) -> bytes:
    """Until the end of file."""
    return b"".join([data async for data in stream])


async def exchange(stream: trio.SocketStream, data: bytes) -> None:
    await stream.send_all(data)
    assert await stream.receive_some() == data


async def expect_reset(connecting: Awaitable[trio.SocketStream]) -> None:
    """The connection is refused by a reset: at once, or when it is read."""
    with pytest.raises((OSError, trio.BrokenResourceError)) as caught:
        async with await connecting as stream:
            assert await stream.receive_some() == b"a reset"
    cause = caught.value if isinstance(caught.value, OSError) else caught.value.__cause__
    assert isinstance(cause, ConnectionResetError)


def run_mesh(test: Callable[[LoopbackMesh], Awaitable[None]], seconds: float = 20) -> None:
    """Run *test* in a reactor with trio as its guest, and leave nothing open."""

    async def main(reactor: Reactor) -> None:
        mesh = LoopbackMesh(reactor)
        with trio.fail_after(seconds):
            try:
                await test(mesh)
            finally:
                with trio.CancelScope(shield=True):
                    await mesh.proxies.drain(0)
        assert not list(reactor.failures)

    host.run(main)


def in_mesh(test: Callable[[LoopbackMesh], Awaitable[None]]) -> Callable[[], None]:
    """Decorate a test with ``run_mesh``."""

    def run() -> None:
        run_mesh(test)

    run.__name__ = test.__name__  # type: ignore[attr-defined]
    run.__doc__ = test.__doc__
    return run
