"""The clusters of a real Envoy sidecar: where its requests and connections can go. Pure.

One cluster per service port, named as Istio names them; each endpoint says by its metadata whether a sidecar
is there, and so whether mutual TLS is spoken.
"""

from __future__ import annotations

from ambient.model.address import is_ipv6
from ambient.model.mesh import Mesh
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Protocol, Workload
from waypoint.envoy_tls import Files, Json, address, marked, upstream_tls

# Istio's defaults: TCP connect timeout, and circuit breakers that never break.
CONNECT_TIMEOUT = "10s"
UNLIMITED = 2**32 - 1

PASSTHROUGH = "PassthroughCluster"
INBOUND = "InboundPassthroughCluster"
ADMIN = "admin"


def cluster_name(service: Service, port: ServicePort) -> str:
    """Istio's name of an outbound cluster."""
    return f"outbound|{port.port}||{service.hostname}"


def clusters(mesh: Mesh, files: Files, admin_port: int) -> list[Json]:
    """Every cluster of a sidecar."""
    fixed = [original_destination(PASSTHROUGH), original_destination(INBOUND), admin(admin_port)]
    services = [service_cluster(mesh, each, port, files) for each in mesh.services() for port in each.ports]
    return fixed + services


def service_cluster(mesh: Mesh, service: Service, port: ServicePort, files: Files) -> Json:
    """One service port with its endpoints of now."""
    targets = mesh.targets(service.key, port.port)
    name = cluster_name(service, port)
    identities = {workload.identity for workload, _port in targets if _has_sidecar(workload)}
    found: Json = {
        **_common(name),
        "type": "STATIC",
        "metadata": {"filter_metadata": {"ambient": {"certificate": files.serial}}},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [_endpoint(workload, target) for workload, target in targets]}],
        },
        "upstream_bind_config": {"source_address": address("0.0.0.0", 0)["socket_address"], **marked()},
    }
    if identities:
        found["transport_socket_matches"] = [
            {
                "name": "tlsMode-istio",
                "match": {"tlsMode": "istio"},
                "transport_socket": upstream_tls(files, identities),
            },
            {
                "name": "tlsMode-disabled",
                "match": {},
                "transport_socket": {
                    "name": "envoy.transport_sockets.raw_buffer",
                    "typed_config": {
                        "@type": "type.googleapis.com/"
                        "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
                    },
                },
            },
        ]
    return found


def original_destination(name: str) -> Json:
    """Goes where the connection wanted to go."""
    return {
        **_common(name),
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "upstream_bind_config": {"source_address": address("0.0.0.0", 0)["socket_address"], **marked()},
    }


def admin(port: int) -> Json:
    """Envoy's own admin interface, for metrics and readiness."""
    return {
        **_common(ADMIN),
        "type": "STATIC",
        "load_assignment": {
            "cluster_name": ADMIN,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address("127.0.0.1", port)}}]}],
        },
    }


def _common(name: str) -> Json:
    breakers = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {
        "name": name,
        "connect_timeout": CONNECT_TIMEOUT,
        "circuit_breakers": {"thresholds": [dict.fromkeys(breakers, UNLIMITED)]},
    }


def _endpoint(workload: Workload, port: int) -> Json:
    # The bind address above is IPv4's, so IPv4 it is where there is a choice.
    ip = next((each for each in workload.addresses if not is_ipv6(each)), workload.addresses[0])
    found: Json = {"endpoint": {"address": address(ip, port)}}
    if _has_sidecar(workload):
        found["metadata"] = {"filter_metadata": {"envoy.transport_socket_match": {"tlsMode": "istio"}}}
    return found


def _has_sidecar(workload: Workload) -> bool:
    return workload.protocol is Protocol.ISTIO_MTLS
