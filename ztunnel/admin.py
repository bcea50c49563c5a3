"""What ztunnel shows of itself: ``/config_dump``, ``/metrics``, ``/healthz/ready``.

No key, token or environment is ever in a dump: it is built from public values only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from ambient.engine.pages import Answer, Routes
from ambient.model.mesh import Mesh
from ambient.wire.values import to_wire
from ztunnel.metrics import TcpMetrics
from ztunnel.proxies import Proxies
from ztunnel.settings import Settings

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def admin_routes(
    settings: Settings, mesh: Mesh, proxies: Proxies, certificates: Callable[[], object]
) -> Routes:
    """Port 15000, for people on the node."""

    def dump() -> Answer:
        document = config_dump(settings, mesh, proxies, certificates())
        return Answer(200, json.dumps(document, indent=1) + "\n", "application/json")

    def index() -> Answer:
        return Answer(200, "ztunnel\n/config_dump\n")

    return {"/": index, "/config_dump": dump}


def config_dump(settings: Settings, mesh: Mesh, proxies: Proxies, certificates: object) -> dict[str, object]:
    """Everything that decides what this process does, under ztunnel's names."""
    # Only who asks for a dump pays for this import: 1 MB, with all of email.
    from importlib.metadata import version

    return {
        "workloads": [to_wire(workload) for workload in mesh.workloads()],
        "services": [to_wire(service) for service in mesh.services()],
        "policies": [to_wire(policy) for policy in mesh.policies()],
        "certificates": certificates,
        "workloadState": proxies.dump(),
        "config": {
            "node": settings.node,
            "clusterId": settings.cluster,
            "inpodUds": settings.inpod_uds,
            "drainSeconds": settings.drain_seconds,
        },
        "version": version("ambient-mesh"),
    }


def metrics_routes(metrics: TcpMetrics, proxies: Proxies) -> Routes:
    """Port 15020, for Prometheus."""

    def exposition() -> Answer:
        for proxy in proxies.all():
            proxy.count()
        return Answer(200, metrics.exposition() + own_metrics(proxies), METRICS_TYPE)

    return {"/metrics": exposition, "/stats/prometheus": exposition}


def own_metrics(proxies: Proxies) -> str:
    """What Istio has no stable name for."""
    now = [proxy.statistics() for proxy in proxies.all()]
    connections = sum(each.connections for each in now)
    tunnels = sum(each.inbound_tunnels for each in now), sum(each.outbound_tunnels for each in now)
    lines = (
        *_gauge("ambient_proxies", "Workloads served, draining ones included", len(now)),
        *_gauge("ambient_connections_open", "Proxied connections without a record yet", connections),
        *_by_role("ambient_tunnels_open", "gauge", "HBONE connections", tunnels),
        *_by_role("ambient_handshakes_total", "counter", "TLS handshakes", proxies.handshakes()),
    )
    return "".join(f"{line}\n" for line in lines)


def _gauge(name: str, text: str, value: int) -> Iterable[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} gauge"
    yield f"{name} {value}"


def _by_role(name: str, kind: str, text: str, values: tuple[int, int]) -> Iterable[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for role, value in zip(("server", "client"), values, strict=True):
        yield f'{name}{{role="{role}"}} {value}'


def ready_routes(pending: Callable[[], list[str]]) -> Routes:
    """Port 15021, for probes."""

    def ready() -> Answer:
        waiting = pending()
        if waiting:
            return Answer(500, f"not ready, pending: {', '.join(waiting)}\n")
        return Answer(200, "ready\n")

    return {"/healthz/ready": ready}
