"""A proxy pair on loopback: plain TCP in, HBONE between, plain TCP out; and how to run it in a reactor.

The application's ends are blocking sockets in threads of their own: they must not share the reactor's
fate, or a bug there would hide here.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from ambient.engine.channel import SocketChannel
from ambient.engine.dial import dial
from ambient.engine.listener import Listener
from ambient.engine.netns import listen_in
from ambient.engine.pool import TunnelPool, hbone_dialler
from ambient.engine.reactor import Reactor
from ambient.engine.relay import RelayCounts, relay
from ambient.engine.tls import Svid, TlsChannel, TlsContext, accept_tls
from ambient.engine.tunnel import TunnelConnection, TunnelRequest, TunnelStream
from ambient.model.identity import SpiffeId
from ambient.model.pool_plan import PoolKey
from ambient.pki.authority import Authority
from ambient.pki.request import new_request
from ambient.pki.svid import X509Svid

CLIENT = SpiffeId("cluster.local", "shop", "web")
SERVER = SpiffeId("cluster.local", "shop", "api")
PATIENCE = 20.0


class Mint:
    """Makes SVIDs of one trust domain."""

    def __init__(self, trust_domain: str = "cluster.local") -> None:
        self.authority = Authority(time.time(), trust_domain)

    def svid(self, identity: SpiffeId) -> Svid:
        key, request = new_request(identity)
        issued = self.authority.issue(request, identity, time.time())
        made = X509Svid.assemble(identity, key, issued.chain, issued.roots)
        return Svid(identity, made.chain, made.key_pem(), made.roots, made.not_before, made.not_after)


@pytest.fixture(scope="session")
def mint() -> Mint:
    return Mint()


@pytest.fixture(scope="session")
def client_svid(mint: Mint) -> Svid:
    return mint.svid(CLIENT)


@pytest.fixture(scope="session")
def server_svid(mint: Mint) -> Svid:
    return mint.svid(SERVER)


class Loop:
    """A reactor in a thread, and safe ways to look into it from the test's."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.crash: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.reactor.run()
        except BaseException as exc:
            self.crash = exc

    def do(self, call: Callable[[], object]) -> object:
        """Run *call* in the reactor's thread and return what it returns."""
        done = threading.Event()
        box: list[object] = []

        def run() -> None:
            try:
                box.append(call())
            except BaseException as exc:
                box.append(exc)
            done.set()

        self.reactor.call_soon_threadsafe(run)
        if not done.wait(PATIENCE):
            raise AssertionError(f"the reactor hangs: {self.crash!r}")
        if isinstance(box[0], BaseException):
            raise box[0]
        return box[0]

    def until(self, condition: Callable[[], object]) -> None:
        """Wait until *condition* (asked in the reactor's thread) is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.do(condition):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.005)

    def stop(self) -> None:
        self.reactor.call_soon_threadsafe(self.reactor.stop)
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        self.reactor.close()


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.stop()
    assert made.crash is None


@dataclass
class Proxies:
    """Both ends of an HBONE path: connect to ``entry``, and ``app`` gets the connection."""

    loop: Loop
    pool: TunnelPool
    server: SpiffeId
    hbone: Listener
    app: socket.socket
    entries: list[Listener] = field(default_factory=list)
    outbound: list[RelayCounts] = field(default_factory=list)
    inbound: list[RelayCounts] = field(default_factory=list)
    refused: list[Exception] = field(default_factory=list)
    tunnels: list[TunnelConnection] = field(default_factory=list)
    on_request: Callable[[TunnelRequest], None] | None = None

    def connect(self) -> socket.socket:
        """An application connects; its traffic goes through the tunnel."""
        sock = socket.create_connection(self.entries[0].address, PATIENCE)
        sock.settimeout(PATIENCE)
        return sock

    def accept(self) -> socket.socket:
        """The application at the far end accepts."""
        sock, _ = self.app.accept()
        sock.settimeout(PATIENCE)
        return sock

    def pair(self) -> tuple[socket.socket, socket.socket]:
        client = self.connect()
        return client, self.accept()


def pool_key(port: int, *, identities: frozenset[SpiffeId] = frozenset((SERVER,))) -> PoolKey:
    return PoolKey("uid-a", CLIENT, "uid-b", "127.0.0.1", port, identities)


@pytest.fixture
def proxies(loop: Loop, client_svid: Svid, server_svid: Svid) -> Iterator[Proxies]:
    reactor = loop.reactor
    app = socket.create_server(("127.0.0.1", 0))
    app.settimeout(PATIENCE)
    app_address = app.getsockname()
    server_context = TlsContext(server_svid, server=True)
    client_context = TlsContext(client_svid, server=False)

    def requested(request: TunnelRequest) -> None:
        if made.on_request is not None:
            made.on_request(request)
            return

        def dialled(result: SocketChannel | OSError) -> None:
            if isinstance(result, OSError):
                request.refuse(503, str(result))
            else:
                relay(reactor, result, request.accept((("baggage", "x=y"),)), made.inbound.append)

        dial(reactor, app_address, dialled)

    def hbone_accepted(sock: socket.socket) -> None:
        def shaken(result: TlsChannel | Exception) -> None:
            if isinstance(result, Exception):
                made.refused.append(result)
                return
            made.tunnels.append(TunnelConnection(reactor, result, on_request=requested))

        accept_tls(reactor, sock, server_context, shaken)

    def build() -> Proxies:
        hbone = Listener(reactor, listen_in(None, 0, host="127.0.0.1"), hbone_accepted)
        pool = TunnelPool(reactor, hbone_dialler(reactor, lambda key: client_context))
        return Proxies(loop, pool, SERVER, hbone, app)

    def app_connected(sock: socket.socket) -> None:
        channel = SocketChannel(reactor, sock)

        def opened(result: TunnelStream | Exception) -> None:
            if isinstance(result, Exception):
                made.refused.append(result)
                channel.abort()
            else:
                relay(reactor, channel, result, made.outbound.append)

        made.pool.open(pool_key(made.hbone.address[1]), "10.0.0.9:80", (("forwarded", "for=x"),), opened)

    made = loop.do(build)
    assert isinstance(made, Proxies)

    def enter() -> None:
        listener = listen_in(None, 0, host="127.0.0.1")
        made.entries.append(Listener(reactor, listener, app_connected))

    loop.do(enter)
    yield made

    def close() -> None:
        made.pool.close()
        made.hbone.close()
        for tunnel in made.tunnels:
            tunnel.close()
        for entry in made.entries:
            entry.close()

    loop.do(close)
    app.close()
    loop.until(lambda: loop.reactor.statistics().descriptors == 0)
