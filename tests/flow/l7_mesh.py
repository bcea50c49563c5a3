"""Sidecars and waypoints on loopback, beside the ztunnels of ``loopback.py``: one process, no namespaces."""

from __future__ import annotations

import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import h11
import trio

from ambient.engine import host
from ambient.engine.channel import SocketChannel
from ambient.engine.dial import dial_socket
from ambient.engine.http_server import HttpServer
from ambient.engine.listener import Listener
from ambient.engine.netns import listen_in, plain_address
from ambient.engine.reactor import Reactor
from ambient.engine.tls import ALPN_HBONE, TlsContext
from ambient.errors import Unavailable
from ambient.fabric.app_service import Service as AppService
from ambient.fabric.app_settings import AppSettings
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Change
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Protocol, Workload
from tests.flow.loopback import LoopbackMesh, TestSvids, fresh_ip, until
from waypoint.context import Address, Context, OnDialled
from waypoint.gateway import Gateway
from waypoint.journal import Journal
from waypoint.metrics import RequestMetrics
from waypoint.sidecar import Sidecar

_ports = itertools.count(20000)


class AlpnSvids(TestSvids):
    """The same certificates for any protocol."""

    __test__ = False

    def context_nowait(
        self, identity: SpiffeId, *, server: bool, alpn: tuple[str, ...] = ALPN_HBONE
    ) -> TlsContext:
        """Of what was issued, or is issued now."""
        if identity in self.refused:
            raise Unavailable(f"{identity} was refused")
        if identity not in self._svids:
            self.renew(identity)
        return TlsContext(self._svids[identity], server=server, alpn=alpn)


class PodNetwork:
    """One pod's network: connections to a pod with a sidecar come to its sidecar's door."""

    def __init__(self, mesh: L7Mesh, ip: str) -> None:
        self._mesh = mesh
        self.ip = ip

    def listen(self, port: int) -> socket.socket:
        """On this pod's address only."""
        return listen_in(None, port, host=self.ip)

    def original_destination(self, sock: socket.socket) -> Address:
        """What the client said it wanted; else where it came to."""
        return self._mesh.wanted.get(plain_address(sock.getpeername()), plain_address(sock.getsockname()))

    def dial(self, address: Address, on_done: OnDialled) -> object:
        """From this pod's address; the kernel's redirection is a dictionary here."""
        source = (self.ip, next(_ports))
        if address[0] in self._mesh.sidecars and address[0] != self.ip:
            self._mesh.wanted[source] = address
            address = (address[0], 15006)
        return dial_socket(self._mesh.reactor, address, on_done, source=source)


class L7Mesh(LoopbackMesh):
    """A mesh with L7 proxies in it."""

    def __init__(self, reactor: Reactor) -> None:
        super().__init__(reactor)
        self.sidecars: dict[str, Sidecar] = {}
        self.gateways: list[Gateway] = []
        self.lines: list[str] = []
        self.metrics = RequestMetrics()
        self.listeners: list[Listener] = []
        self.alpn_svids = AlpnSvids()
        self.alpn_svids.authority = self.svids.authority

    def apply(self, change: Change) -> None:
        """As an update of the control plane."""
        super().apply(change)
        for proxy in (*getattr(self, "sidecars", {}).values(), *getattr(self, "gateways", [])):
            proxy.mesh_changed()

    def context(self, workload: Workload) -> Context:
        """What a proxy of *workload* stands in."""
        return Context(
            reactor=self.reactor,
            mesh=self.mesh,
            svids=self.alpn_svids,
            network=PodNetwork(self, workload.addresses[0]),
            journal=Journal(self.reactor, self.metrics, write=self.lines.append),
            uid=workload.uid,
            chance=lambda: 0.0,
        )

    def http_service(self, name: str, waypoint: str = "", protocol: str = "http") -> Service:
        """A service on port 80 whose endpoints listen on 8080."""
        made = Service(
            name=name,
            namespace="shop",
            hostname=f"{name}.shop.svc.cluster.local",
            addresses=(fresh_ip(),),
            ports=(ServicePort(port=80, target_port=8080, app_protocol=protocol),),
            waypoint=waypoint,
        )
        self.apply(Change(services=(made,)))
        return made

    def endpoint(self, name: str, service: Service, protocol: Protocol, **fields: object) -> Workload:
        """A workload behind *service*."""
        return self.workload(name, protocol, services={service.key: {80: 8080}}, **fields)

    def sidecar(self, workload: Workload) -> Sidecar:
        """Put one beside *workload*."""
        made = self.sidecars[workload.addresses[0]] = Sidecar(self.context(workload))
        made.start()
        return made

    def gateway(self, workload: Workload) -> Gateway:
        """Let *workload* be a waypoint."""
        made = Gateway(self.context(workload))
        self.gateways.append(made)
        made.start()
        return made

    def app(self, workload: Workload, version: str = "", port: int = 8080) -> HttpServer:
        """The built-in workload at its address."""
        settings = AppSettings(pod=workload.name, version=version)
        server = HttpServer(self.reactor, AppService(settings, self.reactor, None).on_request)
        sock = listen_in(None, port, host=workload.addresses[0])
        self.listeners.append(
            Listener(self.reactor, sock, lambda sock: void(server.serve(SocketChannel(self.reactor, sock))))
        )
        return server

    async def logged(self, count: int) -> list[str]:
        """Wait for so many access lines."""
        await until(lambda: len(self.log()) >= count)
        return self.log()

    def log(self) -> list[str]:
        return [line for text in self.lines for line in text.splitlines()]

    def close(self) -> None:
        for proxy in (*self.sidecars.values(), *self.gateways):
            proxy.drain()
            proxy.abort()
        for listener in self.listeners:
            listener.close()


def void(value: object) -> None:
    """Drop *value*."""


class Http:
    """An HTTP client that is not ours: h11 over trio."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = h11.Connection(h11.CLIENT)

    async def request(
        self,
        method: str,
        target: str,
        host: str,
        body: bytes = b"",
        headers: tuple[tuple[str, str], ...] = (),
    ) -> tuple[int, dict[str, str], bytes]:
        """Send one and return (status, headers, body)."""
        if self.connection.our_state is h11.DONE:
            self.connection.start_next_cycle()
        fields = [("host", host), *headers]
        if body:
            fields.append(("content-length", str(len(body))))
        for event in (h11.Request(method=method, target=target, headers=fields), h11.Data(data=body)):
            if not isinstance(event, h11.Data) or body:
                await self.stream.send_all(self.connection.send(event) or b"")
        await self.stream.send_all(self.connection.send(h11.EndOfMessage()) or b"")
        return await self._response()

    async def get(self, target: str, host: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """The short form."""
        named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
        return await self.request("GET", target, host, headers=named)

    async def _response(self) -> tuple[int, dict[str, str], bytes]:
        body = b""
        response: h11.Response | None = None
        while True:
            event = self.connection.next_event()
            if event is h11.NEED_DATA:
                self.connection.receive_data(await self.stream.receive_some(65536))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert response is not None
                fields = {name.decode(): value.decode() for name, value in response.headers}
                return response.status_code, fields, body
            else:
                raise trio.BrokenResourceError(f"ended early: {event}")


@asynccontextmanager
async def client(connecting: Awaitable[trio.SocketStream]) -> AsyncIterator[Http]:
    """An HTTP client on a connection."""
    async with await connecting as stream:
        yield Http(stream)


def in_l7_mesh(test: Callable[[L7Mesh], Awaitable[None]]) -> Callable[[], None]:
    """Run *test* in a reactor with trio as its guest, and leave nothing open."""

    async def main(reactor: Reactor) -> None:
        mesh = L7Mesh(reactor)
        with trio.fail_after(20):
            try:
                await test(mesh)
            finally:
                mesh.close()
                with trio.CancelScope(shield=True):
                    await mesh.proxies.drain(0)
                    await trio.sleep(0.01)
        assert not list(reactor.failures)

    def run() -> None:
        host.run(main)

    run.__name__ = test.__name__  # type: ignore[attr-defined]
    run.__doc__ = test.__doc__
    return run
