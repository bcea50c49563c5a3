"""Real Envoy's configuration for both roles of HBONE, with the duties of a ztunnel."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any, TypeAlias

from ambient.model.identity import SpiffeId
from ambient.pki.authority import Authority
from ambient.pki.request import new_request
from ambient.pki.svid import X509Svid, pem
from benchmarks.bed import mesh

Json: TypeAlias = dict[str, Any]
Address: TypeAlias = tuple[str, int]

# Istio's windows, which Envoy keeps fixed.
HTTP2 = {
    "initial_stream_window_size": 4 * 1024 * 1024,
    "initial_connection_window_size": 16 * 1024 * 1024,
    "max_concurrent_streams": 10_000,
}
BUFFER_BYTES = 1024 * 1024
NO_RESUMPTION = {"max_session_keys": 0}
ONE_STREAM_EACH = {"common_http_protocol_options": {"max_requests_per_connection": 1}}
NO_LIMIT = {
    "thresholds": [dict.fromkeys(("max_connections", "max_pending_requests", "max_requests"), 100_000)]
}


def free_port(host: str) -> int:
    """A port of *host* that nobody has now."""
    with socket.create_server((host, 0)) as sock:
        return int(sock.getsockname()[1])


def client_config(
    folder: Path, authority: Authority, door: Address, peer: Address, target: Address, pooled: bool = True
) -> Json:
    """TCP in, HBONE out; if not *pooled*, a full handshake for each tunnel."""
    proxy = _typed(
        "filters.network.tcp_proxy.v3.TcpProxy",
        stat_prefix="outbound",
        cluster="hbone",
        idle_timeout="0s",
        access_log=[_access_log(folder / "client.access")],
        tunneling_config={
            "hostname": f"{target[0]}:{target[1]}",
            "headers_to_add": [{"header": {"key": "baggage", "value": "k8s.namespace.name=bench"}}],
        },
    )
    options = "upstreams.http.v3.HttpProtocolOptions"
    cluster = _cluster(
        "hbone",
        peer,
        transport_socket=_tls(
            folder, authority, "UpstreamTlsContext", "client", "server", **({} if pooled else NO_RESUMPTION)
        ),
        typed_extension_protocol_options={
            f"envoy.extensions.{options}": _typed(
                options,
                explicit_http_config={"http2_protocol_options": HTTP2},
                **({} if pooled else ONE_STREAM_EACH),
            )
        },
    )
    chain = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
    return _bootstrap(door, chain, cluster)


def server_config(folder: Path, authority: Authority, hbone: Address, target: Address) -> Json:
    """HBONE in, TCP out, ten policies between."""
    route = {"cluster": "app", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}
    host = {"name": "all", "domains": ["*"], "routes": [{"match": {"connect_matcher": {}}, "route": route}]}
    router = _typed("filters.http.router.v3.Router")
    connections = _typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="inbound",
        codec_type="HTTP2",
        stream_idle_timeout="0s",
        http2_protocol_options=HTTP2,
        upgrade_configs=[{"upgrade_type": "CONNECT"}],
        route_config={"virtual_hosts": [host]},
        access_log=[_access_log(folder / "server.access")],
        http_filters=[
            {"name": "envoy.filters.http.rbac", "typed_config": _rbac()},
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
    )
    chain = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": connections}],
        "transport_socket": _tls(
            folder, authority, "DownstreamTlsContext", "server", "client", require_client_certificate=True
        ),
    }
    return _bootstrap(hbone, chain, _cluster("app", target))


def _rbac() -> Json:
    def allow(name: str) -> Json:
        principal = {"authenticated": {"principal_name": {"exact": f"spiffe://{name}"}}}
        return {"permissions": [{"any": True}], "principals": [principal]}

    policies = {f"policy-{number}": allow(name) for number, name in enumerate(mesh.principals())}
    return _typed("filters.http.rbac.v3.RBAC", rules={"action": "ALLOW", "policies": policies})


def _access_log(path: Path) -> Json:
    return {
        "name": "envoy.access_loggers.file",
        "typed_config": _typed("access_loggers.file.v3.FileAccessLog", path=str(path)),
    }


def _tls(folder: Path, authority: Authority, kind: str, side: str, peer: str, **more: Any) -> Json:
    identity = SpiffeId("cluster.local", mesh.NAMESPACE, side)
    key, request = new_request(identity)
    issued = authority.issue(request, identity, time.time())
    svid = X509Svid.assemble(identity, key, issued.chain, issued.roots)
    for suffix, data in ((".pem", pem(svid.chain)), (".key", svid.key_pem()), (".ca", pem(svid.roots))):
        (folder / f"{side}{suffix}").write_bytes(data)
    files = {"certificate_chain": f"{side}.pem", "private_key": f"{side}.key"}
    expected = {"san_type": "URI", "matcher": {"exact": f"spiffe://{mesh.principal(peer)}"}}
    common = {
        "alpn_protocols": ["h2"],
        "tls_params": {f"tls_{end}_protocol_version": "TLSv1_3" for end in ("minimum", "maximum")},
        "tls_certificates": [{name: {"filename": str(folder / file)} for name, file in files.items()}],
        "validation_context": {
            "trusted_ca": {"filename": str(folder / f"{side}.ca")},
            "match_typed_subject_alt_names": [expected],
        },
    }
    config = _typed(f"transport_sockets.tls.v3.{kind}", common_tls_context=common, **more)
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def _bootstrap(listen: Address, chain: Json, cluster: Json) -> Json:
    listener = {
        "name": "listener",
        "address": _address(listen),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [chain],
    }
    return {
        "admin": {"address": _address((listen[0], 0))},
        "static_resources": {"listeners": [listener], "clusters": [cluster]},
    }


def _cluster(name: str, address: Address, **more: Any) -> Json:
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _address(address)}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "circuit_breakers": NO_LIMIT,
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
        **more,
    }


def _address(address: Address) -> Json:
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


def _typed(kind: str, **values: Any) -> Json:
    return {"@type": f"type.googleapis.com/envoy.extensions.{kind}", **values}
