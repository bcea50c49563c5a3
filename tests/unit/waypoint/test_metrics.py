"""Request metrics: Istio's names, Prometheus' text, and a bound."""

from __future__ import annotations

from ambient.model.identity import SpiffeId
from ambient.model.workload import Workload
from waypoint.metrics import BUCKETS, RequestMetrics, Requests

WEB = Workload(uid="web", name="web-1", namespace="shop", workload_name="web", canonical_name="web")
API = Workload(uid="api", name="api-1", namespace="shop", canonical_name="api", canonical_revision="v1")
IDENTITY = SpiffeId("cluster.local", "shop", "web")


def requests(status: int = 200, flag: str = "-") -> Requests:
    return Requests(
        reporter="destination",
        source=WEB,
        destination=API,
        source_identity=IDENTITY,
        destination_identity=None,
        service="api.shop.svc.cluster.local",
        status=status,
        flag=flag,
        mutual_tls=True,
    )


def test_request_is_counted_under_istios_labels() -> None:
    """Dashboards made for Istio must find these."""
    metrics = RequestMetrics()
    metrics.series(requests()).observe(0.003)

    text = metrics.exposition()

    (total,) = [line for line in text.splitlines() if line.startswith("istio_requests_total{")]
    assert total.endswith("} 1")
    for label in (
        'reporter="destination"',
        'source_workload="web"',
        'source_principal="spiffe://cluster.local/ns/shop/sa/web"',
        'destination_workload="api-1"',
        'destination_version="v1"',
        'destination_principal="unknown"',
        'destination_service_name="api"',
        'destination_service_namespace="shop"',
        'response_code="200"',
        'connection_security_policy="mutual_tls"',
    ):
        assert label in total


def test_durations_are_cumulative_buckets() -> None:
    """Prometheus' histogram: each bucket counts itself and all below."""
    metrics = RequestMetrics()
    series = metrics.series(requests())
    for seconds in (0.0004, 0.001, 0.0011, 10_000.0):
        series.observe(seconds)

    lines = [line for line in metrics.exposition().splitlines() if "_bucket" in line]

    assert len(lines) == len(BUCKETS) + 1
    assert [int(line.rpartition(" ")[2]) for line in lines[:3]] == [1, 2, 3]
    assert lines[-1].rpartition(" ")[2] == "4"
    assert 'le="+Inf"' in lines[-1]
    assert "istio_request_duration_milliseconds_count" in metrics.exposition()


def test_series_are_bounded() -> None:
    """Whoever can make up statuses must not make this process grow."""
    metrics = RequestMetrics(max_series=2)
    for status in range(200, 210):
        metrics.series(requests(status)).observe(0.001)

    assert len(metrics) == 3
    assert 'istio_requests_total{reporter="other"} 8' in metrics.exposition()


def test_equal_requests_are_one_series() -> None:
    """The caller may forget and ask again."""
    metrics = RequestMetrics()

    assert metrics.series(requests()) is metrics.series(requests())
    assert metrics.series(requests()) is not metrics.series(requests(flag="UC"))


def test_label_values_cannot_end_themselves() -> None:
    """A name with a quote in it is still one label."""
    odd = Workload(uid="x", name='a"b\\c\nd', namespace="shop")
    metrics = RequestMetrics()
    nobody = Requests(
        reporter="source",
        source=odd,
        destination=None,
        source_identity=None,
        destination_identity=None,
        service="",
        status=503,
        flag="UH",
        mutual_tls=False,
    )
    metrics.series(nobody)

    assert 'source_workload="a\\"b\\\\c\\nd"' in metrics.exposition()
