"""What ztunnel shows of itself."""

from __future__ import annotations

import json

from ambient.model.policy import Action, Policy, Scope
from tests.flow.loopback import LoopbackMesh, in_mesh
from ztunnel.admin import admin_routes, metrics_routes, ready_routes
from ztunnel.metrics import TcpMetrics
from ztunnel.settings import Settings


@in_mesh
async def test_a_dump_says_what_is_served_and_decided(mesh: LoopbackMesh) -> None:
    """The one page that explains a surprise."""
    web = mesh.workload("web")
    mesh.service("api", 80)
    mesh.policies(Policy(key="shop/p", namespace="shop", action=Action.DENY, scope=Scope.NAMESPACE))
    await mesh.enroll(web)
    routes = admin_routes(Settings(node="n1"), mesh.mesh, mesh.proxies, lambda: {"some": "certificate"})

    document = json.loads(routes["/config_dump"]().body)

    assert [each["name"] for each in document["workloads"]] == ["web"]
    assert [each["name"] for each in document["services"]] == ["api"]
    assert [each["key"] for each in document["policies"]] == ["shop/p"]
    assert document["workloadState"][web.uid]["state"] == "up"
    assert document["config"]["node"] == "n1"
    assert document["version"]
    assert "/config_dump" in routes["/"]().body


@in_mesh
async def test_our_own_metrics_stand_beside_istios(mesh: LoopbackMesh) -> None:
    """Under a prefix of their own."""
    await mesh.enroll(mesh.workload("web"))
    routes = metrics_routes(TcpMetrics(), mesh.proxies)

    body = routes["/metrics"]().body

    assert routes["/stats/prometheus"]().body == body
    assert "ambient_proxies 1\n" in body
    assert 'ambient_handshakes_total{role="client"} 0\n' in body
    assert "# TYPE istio_tcp_sent_bytes_total counter\n" in body


def test_readiness_names_what_it_waits_for() -> None:
    """Whoever looks at a node that does not come up."""
    waiting = ["state manager", "workload proxy manager"]
    ready = ready_routes(lambda: waiting)["/healthz/ready"]

    assert ready().status == 500
    assert ready().body == "not ready, pending: state manager, workload proxy manager\n"
    waiting.clear()
    assert (ready().status, ready().body) == (200, "ready\n")
