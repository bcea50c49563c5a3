"""The page of metrics: Istio's names, ours, and one page for a crowd."""

from __future__ import annotations

import re
from collections.abc import Iterator

import trio
import trio.testing

from ambient.engine.follow import Heard
from ambient.model.mesh import Change
from ambient.model.policy import Action, Policy, Scope
from ambient.model.release import VERSION
from ambient.model.workload import Protocol
from tests.flow.loopback import LoopbackMesh, expect_reset, in_mesh
from ztunnel.dns_metrics import DnsMetrics
from ztunnel.exposition import PAGES_A_SECOND, Page, exposition, metrics_routes

STABLE = {
    "istio_build",
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_sent_bytes_total",
    "istio_tcp_received_bytes_total",
}


@in_mesh
async def test_every_family_is_announced_and_says_whether_it_is_stable(mesh: LoopbackMesh) -> None:
    """Istio's contract: whatever is not promised says so in its help text."""
    web, api = mesh.workload("web"), mesh.workload("api", Protocol.TCP)
    await mesh.enroll(web)
    await expect_reset(mesh.connect(web, (api.addresses[0], 1)))
    await mesh.records(1)

    text = "".join(exposition(mesh.journal.metrics, mesh.proxies, DnsMetrics(), Heard()))

    announced = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.M))
    assert set(announced) == set(re.findall(r"^# TYPE (\S+) ", text, re.M))
    for name, help_text in announced.items():
        assert ("(unstable)" in help_text) is not (name in STABLE or name.startswith("ambient_")), name
    assert re.search(r'^istio_tcp_connections_failed_total\{.*response_flags="CONNECT"\} 1$', text, re.M)
    assert "ambient_proxies 1\n" in text
    assert 'ambient_handshakes_total{role="client"} 0\n' in text
    assert 'istio_tcp_sockets_open{reporter="source"} 0\n' in text
    assert "workload_manager_proxies_started_total 1\n" in text


@in_mesh
async def test_what_came_from_control_is_counted_by_kind(mesh: LoopbackMesh) -> None:
    """A mesh that changes too often shows here first; the names are Istio's."""
    heard = Heard(received=1234, closed=1)
    policy = Policy(key="shop/p", namespace="shop", action=Action.DENY, scope=Scope.NAMESPACE, rules=())
    heard.count(Change(removed_workloads=("a", "b")))
    heard.count(Change(removed_services=("a",), policies=(policy,), snapshot=True))
    heard.count(Change(snapshot=True))

    text = "".join(exposition(mesh.journal.metrics, mesh.proxies, heard=heard))

    assert f'istio_build{{component="ztunnel",tag="{VERSION}"}} 1\n' in text
    assert 'istio_xds_message_total{url="type.googleapis.com/istio.workload.Address"} 2\n' in text
    assert 'istio_xds_message_total{url="type.googleapis.com/istio.security.Authorization"} 1\n' in text
    assert "istio_xds_message_bytes_total 1234\n" in text
    assert 'istio_xds_connection_terminations_total{reason="Complete"} 1\n' in text


@in_mesh
async def test_both_paths_are_answered(mesh: LoopbackMesh) -> None:
    """Prometheus' and Envoy's."""
    routes = metrics_routes(mesh.journal.metrics, mesh.proxies)

    assert set(routes) == {"/metrics", "/stats/prometheus"}
    assert set(routes["/metrics"]) == {"GET"}


def test_a_page_is_fresh_unless_a_crowd_asks() -> None:
    """Who asks twice sees two states; a hundred at once cost one page, and thousands four a second."""
    made = 0

    def lines() -> Iterator[str]:
        nonlocal made
        made += 1
        for number in range(500):
            yield f"{made} {number}\n"

    async def ask() -> None:
        page = Page(lines)
        assert (await page.get()).startswith(b"1 0\n")
        await trio.sleep(0.001)
        assert (await page.get()).startswith(b"2 0\n")

        await trio.sleep(2)
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(page.get)
        assert made == 3

        await trio.sleep(2)
        for _ in range(1000):
            await page.get()
            await trio.sleep(0.0001)
        assert made == 3 + PAGES_A_SECOND

    trio.run(ask, clock=trio.testing.MockClock(autojump_threshold=0))
