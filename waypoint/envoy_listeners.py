"""The listeners of a real Envoy sidecar: outbound 15001, inbound 15006, metrics 15020, readiness 15021. Pure.

The shape is Istio's, reduced to what is compared: HTTP by the service port's word, routed by host, recorded;
mutual TLS and plaintext told apart by Envoy's TLS inspector.
"""

from __future__ import annotations

from collections.abc import Iterable

from ambient.model.address import is_ipv6
from ambient.model.mesh import Mesh
from ambient.model.policy import Policy
from ambient.model.route import INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Workload
from waypoint.client import serves_http
from waypoint.envoy_clusters import ADMIN, INBOUND, PASSTHROUGH, cluster_name
from waypoint.envoy_rbac import rbac_filters
from waypoint.envoy_tls import ALPN, Files, Json, address, downstream_tls, marked, typed
from waypoint.settings import METRICS_PORT, READY_PORT

# How long a silent client of a server-first protocol waits to be told apart; as in our own sidecar.
INSPECTION_TIMEOUT = "0.1s"
_LINE = (
    "%START_TIME%\tinfo\taccess\trequest complete\tsrc.addr=%DOWNSTREAM_REMOTE_ADDRESS% "
    'dst.addr=%UPSTREAM_HOST% dst.cluster="%UPSTREAM_CLUSTER%" method="%REQ(:METHOD)%" path="%REQ(:PATH)%" '
    'host="%REQ(:AUTHORITY)%" status=%RESPONSE_CODE% flags="%RESPONSE_FLAGS%" bytes_sent=%BYTES_SENT% '
    'bytes_recv=%BYTES_RECEIVED% duration="%DURATION%ms"\n'
)


def listeners(mesh: Mesh, me: Workload, files: Files, *, access_log: bool = True) -> list[Json]:
    """Every listener of the sidecar of *me*."""
    return [
        outbound(mesh, me, access_log=access_log),
        inbound(mesh, me, files, access_log=access_log),
        _admin_page("metrics", METRICS_PORT, "/metrics", "/stats/prometheus"),
        _admin_page("ready", READY_PORT, "/healthz/ready", "/ready"),
    ]


# Outbound ----------------------------------------------------------------------------------


def outbound(mesh: Mesh, me: Workload, *, access_log: bool = True) -> Json:
    """The application's connections, by where they wanted to go."""
    chains = [
        chain
        for service in mesh.services()
        for port in service.ports
        if (chain := _outbound_chain(mesh, me, service, port, access_log)) is not None
    ]
    return {
        "name": "virtualOutbound",
        "address": _everywhere(OUTBOUND_PORT),
        "traffic_direction": "OUTBOUND",
        "listener_filters": [
            {
                "name": "envoy.filters.listener.original_dst",
                "typed_config": typed("filters.listener.original_dst.v3.OriginalDst"),
            }
        ],
        "filter_chains": chains,
        "default_filter_chain": {"name": PASSTHROUGH, "filters": [_tcp_proxy(PASSTHROUGH)]},
    }


def _outbound_chain(
    mesh: Mesh, me: Workload, service: Service, port: ServicePort, access_log: bool
) -> Json | None:
    if not service.addresses:
        return None
    name = cluster_name(service, port)
    if port.app_protocol == "http":
        filters = [_http(name, _virtual_hosts(mesh, me, service, port), access_log)]
    else:
        filters = [_tcp_proxy(name)]
    match = {"prefix_ranges": [_host_range(ip) for ip in service.addresses], "destination_port": port.port}
    return {"name": name, "filter_chain_match": match, "filters": filters}


def _virtual_hosts(mesh: Mesh, me: Workload, service: Service, port: ServicePort) -> list[Json]:
    """By host among the services of this port; anything else where the connection wanted to go."""
    found = [
        _virtual_host(other.hostname, _domains(other, each, me), cluster_name(other, each))
        for other in mesh.services()
        for each in other.ports
        if each.port == port.port and each.app_protocol == "http"
    ]
    return [*found, _virtual_host("any", ["*"], cluster_name(service, port))]


def _domains(service: Service, port: ServicePort, me: Workload) -> list[str]:
    """How a client in our namespace may write the host, with and without the port."""
    short = f"{service.name}.{service.namespace}"
    names = [service.hostname, f"{short}.svc", short, *service.addresses]
    if service.namespace == me.namespace:
        names.append(service.name)
    plain = [f"[{name}]" if is_ipv6(name) else name for name in names]
    return [text for name in plain for text in (name, f"{name}:{port.port}")]


def _virtual_host(name: str, domains: list[str], cluster: str) -> Json:
    # Istio's defaults: no route timeout; retries where nothing was answered.
    route = {
        "cluster": cluster,
        "timeout": "0s",
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled",
            "num_retries": 2,
        },
    }
    return {"name": name, "domains": domains, "routes": [{"match": {"prefix": "/"}, "route": route}]}


# Inbound -----------------------------------------------------------------------------------


def inbound(mesh: Mesh, me: Workload, files: Files, *, access_log: bool = True) -> Json:
    """What comes to the pod: mutual TLS or plaintext, HTTP by port, then the application."""
    ports = sorted({target for ports in me.services.values() for target in ports.values()})
    policies = mesh.policies_for(me)
    chains: list[Json] = []
    for port in ports:
        handler = _handler(f"inbound|{port}", policies, serves_http(mesh, me, port), access_log)
        chains += _inbound_chains(f"inbound|{port}", {"destination_port": port}, me, files, handler)
    chains += _inbound_chains("inbound", {}, me, files, _handler("inbound", policies, False, access_log))
    return {
        "name": "virtualInbound",
        "address": _everywhere(INBOUND_PLAINTEXT_PORT),
        "traffic_direction": "INBOUND",
        "transparent": True,
        **marked(),
        "listener_filters": [
            {
                "name": "envoy.filters.listener.original_dst",
                "typed_config": typed("filters.listener.original_dst.v3.OriginalDst"),
            },
            {
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": typed("filters.listener.tls_inspector.v3.TlsInspector"),
            },
        ],
        "listener_filters_timeout": INSPECTION_TIMEOUT,
        "continue_on_listener_filters_timeout": True,
        "metadata": {"filter_metadata": {"ambient": {"certificate": files.serial}}},
        "filter_chains": chains,
    }


def _handler(name: str, policies: Iterable[Policy], http: bool, access_log: bool) -> list[Json]:
    """What policy allows goes to the application."""
    if http:
        guards = rbac_filters(policies, http=True)
        return [_http(name, [_virtual_host(name, ["*"], INBOUND)], access_log, guards)]
    return [*rbac_filters(policies, http=False), _tcp_proxy(INBOUND)]


def _inbound_chains(name: str, match: Json, me: Workload, files: Files, filters: list[Json]) -> list[Json]:
    secured: Json = {
        "name": f"{name}|mtls",
        "filter_chain_match": {**match, "transport_protocol": "tls", "application_protocols": list(ALPN)},
        "transport_socket": downstream_tls(files, me.trust_domain),
        "filters": filters,
    }
    return [secured, {"name": f"{name}|plain", "filter_chain_match": match, "filters": filters}]


# Pieces ------------------------------------------------------------------------------------


def _http(name: str, virtual_hosts: list[Json], access_log: bool, guards: Iterable[Json] = ()) -> Json:
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        codec_type="HTTP1",
        normalize_path=True,
        route_config={"name": name, "virtual_hosts": virtual_hosts, "validate_clusters": False},
        http_filters=[
            *guards,
            {"name": "envoy.filters.http.router", "typed_config": typed("filters.http.router.v3.Router")},
        ],
    )
    if access_log:
        manager["access_log"] = [_access_log()]
    return {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}


def _access_log() -> Json:
    config = typed(
        "access_loggers.stream.v3.StderrAccessLog",
        log_format={"text_format_source": {"inline_string": _LINE}},
    )
    return {"name": "envoy.access_loggers.stderr", "typed_config": config}


def _tcp_proxy(cluster: str) -> Json:
    config = typed(
        "filters.network.tcp_proxy.v3.TcpProxy", stat_prefix=cluster, cluster=cluster, idle_timeout="0s"
    )
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": config}


def _admin_page(name: str, port: int, path: str, target: str) -> Json:
    route = {"match": {"path": path}, "route": {"cluster": ADMIN, "prefix_rewrite": target}}
    hosts = [{"name": name, "domains": ["*"], "routes": [route]}]
    filters = [_http(name, hosts, False)]
    return {"name": name, "address": _everywhere(port), "filter_chains": [{"filters": filters}]}


def _everywhere(port: int) -> Json:
    found = address("::", port)
    found["socket_address"]["ipv4_compat"] = True
    return found


def _host_range(ip: str) -> Json:
    return {"address_prefix": ip, "prefix_len": 128 if is_ipv6(ip) else 32}
