"""Istio's TCP metrics: names, labels, direction of the bytes, and a bound."""

from __future__ import annotations

import re

from ambient.model.identity import SpiffeId
from ambient.model.record import Flag
from ambient.model.workload import Workload
from ztunnel.metrics import LABELS, TcpMetrics, Traffic, closed, format_labels, labels_of

WEB = Workload(uid="web", name="web-1", namespace="shop", canonical_name="web", canonical_revision="v1")
API = Workload(uid="api", name="api-1", namespace="shop", workload_name="api")
TRAFFIC = Traffic(
    reporter="source",
    source=WEB,
    destination=API,
    service="api.shop.svc.cluster.local",
    source_identity=SpiffeId("cluster.local", "shop", "web"),
    destination_identity=SpiffeId("cluster.local", "shop", "api"),
)


def values(text: str, name: str) -> list[int]:
    return [int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{")]


def test_labels_are_istios() -> None:
    """Istio's dashboards query these names."""
    labels = labels_of(TRAFFIC, "Kubernetes")

    assert tuple(labels) == LABELS
    assert labels["source_workload"] == "web-1"
    assert labels["destination_workload"] == "api"
    assert labels["source_principal"] == "spiffe://cluster.local/ns/shop/sa/web"
    assert labels["source_version"] == "v1"
    assert labels["destination_app"] == "unknown"
    assert labels["destination_service_name"] == "api"
    assert labels["destination_service_namespace"] == "shop"
    assert labels["connection_security_policy"] == "mutual_tls"
    assert labels["destination_cluster"] == "Kubernetes"


def test_a_stranger_is_unknown() -> None:
    """Plaintext from outside the mesh to an address nobody knows."""
    labels = labels_of(
        Traffic(reporter="destination", source=None, destination=None, service="x.example"), "K"
    )

    assert labels["source_workload"] == labels["source_cluster"] == "unknown"
    assert labels["destination_service_name"] == "x.example"
    assert labels["destination_service_namespace"] == "unknown"
    assert labels["connection_security_policy"] == "unknown"


def test_a_connection_is_counted_when_it_opens_and_when_it_ends() -> None:
    """Open ones are the difference of the two counters."""
    metrics = TcpMetrics()
    series = metrics.opened(TRAFFIC)
    metrics.opened(TRAFFIC)
    closed(series, Flag.NONE)
    closed(series, Flag.DENY)
    closed(series, Flag.DENY)

    series.sent += 11
    series.received += 4

    text = metrics.exposition()

    assert values(text, "istio_tcp_connections_opened_total") == [2]
    assert values(text, "istio_tcp_connections_closed_total") == [1, 2]
    assert values(text, "istio_tcp_sent_bytes_total") == [11]
    assert values(text, "istio_tcp_received_bytes_total") == [4]
    assert 'response_flags="DENY"' in text
    assert len(metrics) == 1


def test_every_line_is_prometheus_text() -> None:
    """A scraper drops the whole page for one bad line."""
    metrics = TcpMetrics()
    closed(metrics.opened(TRAFFIC), Flag.NONE)

    for line in metrics.exposition().splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) .*|istio_tcp_\w+_total\{(\w+="[^"]*",?)+\} \d+', line), line
        names = re.findall(r'(\w+)="', line)
        assert len(names) == len(set(names))


def test_series_are_bounded_and_the_rest_is_other() -> None:
    """Whoever can make workloads appear must not make us grow."""
    metrics = TcpMetrics(max_series=2)
    for number in range(10):
        source = Workload(uid=str(number), name=f"w{number}", namespace="shop")
        for reporter in ("source", "destination"):
            traffic = Traffic(reporter=reporter, source=source, destination=None)
            closed(metrics.opened(traffic), Flag.NONE)

    assert len(metrics) == 4
    text = metrics.exposition()
    assert sum(values(text, "istio_tcp_connections_opened_total")) == 20
    assert 'reporter="source",source_workload="other"' in text


def test_a_label_cannot_end_its_line() -> None:
    """Label values come from manifests."""
    assert format_labels({"a": 'x"\n\\'}) == 'a="x\\"\\n\\\\"'
