"""Our HBONE against Envoy's: each as client, each as server, every byte checked."""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from ambient.engine.channel import SocketChannel
from ambient.engine.dial import dial
from ambient.engine.listener import Listener
from ambient.engine.netns import listen_in
from ambient.engine.pool import TunnelPool, hbone_dialler
from ambient.engine.relay import RelayCounts, relay
from ambient.engine.tls import TlsChannel, TlsContext, accept_tls
from ambient.engine.tunnel import TunnelConnection, TunnelRefused, TunnelRequest, TunnelStream
from ambient.model.identity import SpiffeId
from ambient.model.pool_plan import PoolKey

pytestmark = pytest.mark.envoy

CLIENT = SpiffeId("cluster.local", "shop", "web")
SERVER = SpiffeId("cluster.local", "shop", "api")
MEBIBYTE = 1024 * 1024
PATIENCE = 30.0

HCM = "filters.network.http_connection_manager.v3.HttpConnectionManager"
OPTIONS = "upstreams.http.v3.HttpProtocolOptions"
DOWNSTREAM = "transport_sockets.tls.v3.DownstreamTlsContext"
UPSTREAM = "transport_sockets.tls.v3.UpstreamTlsContext"


def typed(kind: str, **values: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **values}


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name: str, port: int, **more: Any) -> dict[str, Any]:
    endpoint = {"endpoint": {"address": address(port)}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": assignment, **more}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Path:
    """An application at each end, HBONE between."""

    loop: Any
    app: socket.socket
    entry: int
    counts: list[RelayCounts]

    def pair(self) -> tuple[socket.socket, socket.socket]:
        client = socket.create_connection(("127.0.0.1", self.entry), PATIENCE)
        client.settimeout(PATIENCE)
        server, _ = self.app.accept()
        server.settimeout(PATIENCE)
        return client, server


# Envoy's HTTP/2 in the shapes that its operators give it. 65,535 is the least window that it takes;
# its frames have 16 KiB at the most, whatever we allow.
HTTP2: dict[str, dict[str, int]] = {
    "ordinary": {"max_concurrent_streams": 1000},
    "small-windows": {"initial_stream_window_size": 65_535, "initial_connection_window_size": 65_535},
    "one-stream": {"max_concurrent_streams": 1},
}


@pytest.fixture(params=HTTP2)
def http2(request: pytest.FixtureRequest) -> dict[str, int]:
    """Envoy's ``http2_protocol_options``."""
    return HTTP2[request.param]


@pytest.fixture
def app() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(PATIENCE)
        yield sock


@pytest.fixture
def to_envoy(envoy: Any, mint: Any, loop: Any, app: socket.socket, http2: dict[str, int]) -> Iterator[Path]:
    """Our client, Envoy's server."""
    port, app_port = free_port(), app.getsockname()[1]
    envoy(envoy_server(port, app_port, mint.tls(SERVER, CLIENT), http2), port)
    context = TlsContext(mint.svid(CLIENT), server=False)
    key = PoolKey("a", CLIENT, "b", "127.0.0.1", port, frozenset((SERVER,)))
    reactor = loop.reactor
    counts: list[RelayCounts] = []

    def connected(sock: socket.socket) -> None:
        channel = SocketChannel(reactor, sock)

        def opened(result: TunnelStream | Exception) -> None:
            if isinstance(result, Exception):
                channel.abort()
            else:
                relay(reactor, channel, result, counts.append)

        headers = (("baggage", "k8s.namespace.name=shop"), ("forwarded", 'for="10.0.0.1:4"'))
        pool.open(key, f"127.0.0.1:{app_port}", headers, opened)

    pool = loop.do(lambda: TunnelPool(reactor, hbone_dialler(reactor, lambda key: context)))
    listener = loop.do(lambda: Listener(reactor, listen_in(None, 0, host="127.0.0.1"), connected))
    yield Path(loop, app, listener.address[1], counts)
    loop.do(lambda: (listener.close(), pool.close()))
    loop.until(lambda: reactor.statistics().descriptors == 0)


@pytest.fixture
def from_envoy(envoy: Any, mint: Any, loop: Any, app: socket.socket, http2: dict[str, int]) -> Iterator[Path]:
    """Envoy's client, our server."""
    context = TlsContext(mint.svid(SERVER), server=True)
    reactor = loop.reactor
    counts: list[RelayCounts] = []
    tunnels: list[TunnelConnection] = []
    authorities: list[str] = []

    def requested(request: TunnelRequest) -> None:
        authorities.append(request.authority)

        def dialled(result: SocketChannel | OSError) -> None:
            if isinstance(result, OSError):
                request.refuse(503, str(result))
            else:
                relay(reactor, result, request.accept(), counts.append)

        dial(reactor, ("127.0.0.1", app.getsockname()[1]), dialled)

    def shaken(result: TlsChannel | Exception) -> None:
        if not isinstance(result, Exception):
            tunnels.append(TunnelConnection(reactor, result, on_request=requested))

    def connected(sock: socket.socket) -> None:
        accept_tls(reactor, sock, context, shaken)

    listener = loop.do(lambda: Listener(reactor, listen_in(None, 0, host="127.0.0.1"), connected))
    port = free_port()
    envoy(envoy_client(port, listener.address[1], mint.tls(CLIENT, SERVER), http2), port)
    # The probe of the port was a connection too.
    app.accept()[0].close()
    yield Path(loop, app, port, counts)
    assert set(authorities) == {"10.0.0.9:80"}
    loop.do(lambda: (listener.close(), [tunnel.close() for tunnel in tunnels]))
    loop.until(lambda: reactor.statistics().descriptors == 0)


def envoy_server(port: int, app_port: int, tls: dict[str, Any], http2: dict[str, int]) -> dict[str, Any]:
    route = {
        "match": {"connect_matcher": {}},
        "route": {"cluster": "app", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]},
    }
    denied = {
        "match": {"connect_matcher": {}},
        "direct_response": {"status": 403, "body": {"inline_string": "no"}},
    }
    hosts = [
        {"name": "app", "domains": [f"127.0.0.1:{app_port}"], "routes": [route]},
        {"name": "denied", "domains": ["*"], "routes": [denied]},
    ]
    manager = typed(
        HCM,
        stat_prefix="hbone",
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        http2_protocol_options=http2,
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        route_config={"virtual_hosts": hosts},
        http_filters=[
            {"name": "envoy.filters.http.router", "typed_config": typed("filters.http.router.v3.Router")}
        ],
    )
    downstream = typed(DOWNSTREAM, require_client_certificate=True, common_tls_context=tls)
    chain = {
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": downstream},
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
    }
    listener = {"name": "hbone", "address": address(port), "filter_chains": [chain]}
    return {"listeners": [listener], "clusters": [cluster("app", app_port)]}


def envoy_client(port: int, peer: int, tls: dict[str, Any], http2: dict[str, int]) -> dict[str, Any]:
    proxy = typed(
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="out",
        cluster="hbone",
        idle_timeout="0s",
        tunneling_config={"hostname": "10.0.0.9:80"},
    )
    filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
    listener = {"name": "out", "address": address(port), "filter_chains": [{"filters": filters}]}
    upstream = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": typed(UPSTREAM, common_tls_context=tls),
    }
    options = typed(OPTIONS, explicit_http_config={"http2_protocol_options": http2})
    hbone = cluster(
        "hbone",
        peer,
        transport_socket=upstream,
        typed_extension_protocol_options={f"envoy.extensions.{OPTIONS}": options},
    )
    return {"listeners": [listener], "clusters": [hbone]}


def exchange(path: Path, up: bytes, down: bytes, *, patient: bool = False) -> None:
    """Send *up* and *down* at the same time, with an end of file each, and check both.

    Args:
        patient: The destination ends its direction only after the source has: Envoy 1.40 as the HBONE
            server resets a CONNECT whose destination ends first, and loses what is under way.
    """
    client, server = path.pair()
    got: dict[str, str] = {}

    uploaded = threading.Event()

    def send(sock: socket.socket, data: bytes) -> None:
        sock.sendall(data)
        if patient and sock is server:
            uploaded.wait(PATIENCE)
        sock.shutdown(socket.SHUT_WR)

    def receive(name: str, sock: socket.socket) -> None:
        seen = hashlib.sha256()
        while data := sock.recv(MEBIBYTE):
            seen.update(data)
        got[name] = seen.hexdigest()
        if sock is server:
            uploaded.set()

    jobs: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
        (send, (client, up)),
        (send, (server, down)),
        (receive, ("up", server)),
        (receive, ("down", client)),
    ]
    threads = [threading.Thread(target=job, args=args, daemon=True) for job, args in jobs]
    with client, server:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)

    assert got == {"up": hashlib.sha256(up).hexdigest(), "down": hashlib.sha256(down).hexdigest()}


SIZES = [(0, 0), (1, 1), (70_000, 0), (0, 70_000), (24 * MEBIBYTE + 3, 9 * MEBIBYTE + 1)]


@pytest.mark.parametrize(("up", "down"), SIZES)
def test_our_client_to_envoys_server(to_envoy: Path, up: int, down: int) -> None:
    """A mesh that only talks to itself proves nothing about HBONE."""
    exchange(to_envoy, os.urandom(up), os.urandom(down), patient=True)


@pytest.mark.parametrize(("up", "down"), SIZES)
def test_envoys_client_to_our_server(from_envoy: Path, up: int, down: int) -> None:
    """The other way round."""
    exchange(from_envoy, os.urandom(up), os.urandom(down))


def converse(path: Path) -> None:
    """Thirty conversations at once, each message checked at both ends."""
    with ExitStack() as stack:
        pairs = [path.pair() for _ in range(30)]
        for client, server in pairs:
            stack.enter_context(client)
            stack.enter_context(server)
        for round_number in range(20):
            for number, (client, server) in enumerate(pairs):
                message = b"%d/%d" % (round_number, number)
                client.sendall(message)
                assert server.recv(100) == message
                server.sendall(message[::-1])
                assert client.recv(100) == message[::-1]


def test_many_streams_to_envoy(to_envoy: Path) -> None:
    """Streams of one connection stay apart, and a peer's limit opens another connection."""
    converse(to_envoy)


def test_many_streams_from_envoy(from_envoy: Path) -> None:
    """The same, with our limits in its hands."""
    converse(from_envoy)


def test_envoys_refusal_is_an_answer(envoy: Any, mint: Any, loop: Any, app: socket.socket) -> None:
    """A 403 with a body is a decision of a healthy peer: the connection stays."""
    port = free_port()
    envoy(envoy_server(port, app.getsockname()[1], mint.tls(SERVER, CLIENT), HTTP2["ordinary"]), port)
    context = TlsContext(mint.svid(CLIENT), server=False)
    key = PoolKey("a", CLIENT, "b", "127.0.0.1", port, frozenset((SERVER,)))
    answers: list[object] = []
    pool = loop.do(lambda: TunnelPool(loop.reactor, hbone_dialler(loop.reactor, lambda key: context)))

    for number in range(1, 4):
        loop.do(lambda: pool.open(key, "10.9.9.9:1", (), answers.append))
        loop.until(lambda number=number: len(answers) == number)

    assert [answer.status for answer in answers if isinstance(answer, TunnelRefused)] == [403] * 3
    assert loop.do(lambda: pool.statistics().handshakes) == 1
    loop.do(pool.close)
    loop.until(lambda: loop.reactor.statistics().descriptors == 0)
