"""What the DNS proxies count, under the names of Istio's ztunnel. Pure.

Source: ``src/dns/metrics.rs``; all of these are "unstable" there and here. Capped like the TCP metrics:
what is over the cap counts as ``other``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from ambient.model.workload import Workload
from ambient.wire.dns import TYPE_A, TYPE_AAAA
from ztunnel.metrics import MAX_SERIES, OTHER, format_labels, side_labels

# Seconds; Prometheus' own default buckets reach from a cache's answer to the forwarding deadline.
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_KINDS = {TYPE_A: "A", TYPE_AAAA: "AAAA"}


@dataclass(slots=True)
class DnsSeries:
    """One workload's questions of one type by one protocol."""

    labels: str
    requests: int = 0
    forwarded: int = 0
    failures: int = 0
    seconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))

    def answered(self, seconds: float) -> None:
        """An upstream server answered after so long."""
        self.seconds += seconds
        self.buckets[bisect_left(BUCKETS, seconds)] += 1


class DnsMetrics:
    """All series of one process."""

    def __init__(self, cluster: str = "Kubernetes", max_series: int = MAX_SERIES) -> None:
        self._cluster = cluster
        self._max_series = max_series
        self._series: dict[tuple[str, str, str], DnsSeries] = {}

    def series(self, source: Workload | None, kind: int, *, by_udp: bool) -> DnsSeries:
        """Where a question of *source* counts."""
        key = (source.uid if source else "", _KINDS.get(kind, OTHER), "udp" if by_udp else "tcp")
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= self._max_series:
                key, source = (OTHER, OTHER, OTHER), None
                found = self._series.get(key)
            if found is None:
                found = self._series[key] = DnsSeries(self._labels(key, source))
        return found

    def exposition(self) -> str:
        """All series as Prometheus text."""
        return "".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The same line by line."""
        return (f"{line}\n" for line in self._lines())

    def _labels(self, key: tuple[str, str, str], source: Workload | None) -> str:
        head = {"request_query_type": key[1], "request_protocol": key[2]}
        return format_labels(head | side_labels("source", source, self._cluster))

    def _lines(self) -> Iterator[str]:
        series = tuple(self._series.values())
        for name, help_text, attribute in (
            ("istio_dns_requests_total", "Total number of DNS requests (unstable)", "requests"),
            (
                "istio_dns_upstream_requests_total",
                "Total number of DNS requests forwarded to upstream (unstable)",
                "forwarded",
            ),
            (
                "istio_dns_upstream_failures_total",
                "Total number of DNS requests that no upstream answered (unstable)",
                "failures",
            ),
        ):
            yield from (f"# HELP {name} {help_text}", f"# TYPE {name} counter")
            for each in series:
                yield f"{name}{{{each.labels}}} {getattr(each, attribute)}"
        name = "istio_dns_upstream_request_duration_seconds"
        yield from (f"# HELP {name} Time until upstream answered (unstable)", f"# TYPE {name} histogram")
        for each in series:
            yield from _histogram(name, each)


def _histogram(name: str, series: DnsSeries) -> Iterator[str]:
    total = 0
    for bound, count in zip((*map(str, BUCKETS), "+Inf"), series.buckets, strict=True):
        total += count
        yield f'{name}_bucket{{{series.labels},le="{bound}"}} {total}'
    yield f"{name}_sum{{{series.labels}}} {series.seconds:.6f}"
    yield f"{name}_count{{{series.labels}}} {total}"
