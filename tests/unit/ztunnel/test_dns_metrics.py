"""What the DNS proxies count: Istio's names, and a bound."""

from __future__ import annotations

import re

from ambient.model.workload import Workload
from ambient.wire.dns import TYPE_A
from ztunnel.dns_metrics import DnsMetrics

WEB = Workload(uid="web", name="web-1", namespace="shop", canonical_name='we"b\n')


def test_every_line_is_prometheus_text_and_says_unstable() -> None:
    """A scraper drops the page for one bad line; the help text is Istio's contract."""
    metrics = DnsMetrics()
    series = metrics.series(WEB, TYPE_A, by_udp=True)
    series.requests += 1
    series.answered(0.03)

    for line in metrics.exposition().splitlines():
        assert re.fullmatch(
            r"# HELP istio_\w+ .*\(unstable\)|# TYPE istio_\w+ (counter|histogram)"
            r'|istio_dns_\w+\{(\w+="([^"\\\n]|\\.)*",?)+\} [\d.]+',
            line,
        ), line


def test_the_histogram_is_cumulative() -> None:
    """Prometheus' shape."""
    metrics = DnsMetrics()
    series = metrics.series(WEB, TYPE_A, by_udp=True)
    for seconds in (0.001, 0.03, 99.0):
        series.answered(seconds)

    text = metrics.exposition()

    counts = [int(line.rsplit(" ", 1)[1]) for line in text.splitlines() if "_bucket{" in line]
    assert counts == sorted(counts)
    assert (counts[0], counts[-2], counts[-1]) == (1, 2, 3)
    assert 'le="+Inf"} 3' in text
    assert "_count{" in text


def test_types_are_few_and_series_bounded() -> None:
    """A pod that asks for 65,536 types makes one series; 100 pods under a cap of 5 make six."""
    metrics = DnsMetrics(max_series=5)
    for kind in range(65536):
        metrics.series(WEB, kind, by_udp=True)
    for number in range(100):
        pod = Workload(uid=str(number), name=f"p{number}", namespace="shop")
        metrics.series(pod, TYPE_A, by_udp=False).requests += 1

    lines = [line for line in metrics.exposition().splitlines() if line.startswith("istio_dns_requests")]
    assert len(lines) == 6
    assert sum(int(line.rsplit(" ", 1)[1]) for line in lines) == 100
