"""Istio's request metrics, counted per pair of workloads and answer, written as Prometheus text.

Pure: no clock, no I/O; the daemon serves ``exposition()`` on port 15020.

Source: Istio's standard metrics (``istio_requests_total``, ``istio_request_duration_milliseconds``) and the
bucket bounds of its Envoy telemetry. The number of series is bounded; what is over it goes to ``other``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

from ambient.model.identity import SpiffeId
from ambient.model.workload import Workload

# As many as ztunnel keeps; picked, not measured.
MAX_SERIES = 2000
# Milliseconds.
BUCKETS = (0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000)

UNKNOWN = "unknown"
OTHER = "other"
_SIDE = (
    "workload",
    "workload_namespace",
    "principal",
    "app",
    "version",
    "canonical_service",
    "canonical_revision",
)
_TOTAL = "istio_requests_total"
_DURATION = "istio_request_duration_milliseconds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What a series is about; equal values are one series.

    Attributes:
        reporter: ``"source"``, ``"destination"`` or ``"waypoint"``.
        service: Host name of the service that was addressed, or "".
        status: 0 if the client was told nothing.
        mutual_tls: Whether the connection that the reporter can judge was.
    """

    reporter: str
    source: Workload | None
    destination: Workload | None
    source_identity: SpiffeId | None
    destination_identity: SpiffeId | None
    service: str
    status: int
    flag: str
    mutual_tls: bool


@dataclass(slots=True)
class Series:
    """The running counts of one ``Requests``."""

    labels: str
    count: int = 0
    milliseconds: float = 0.0
    buckets: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))

    def observe(self, seconds: float) -> None:
        """Count one request."""
        milliseconds = seconds * 1000
        self.count += 1
        self.milliseconds += milliseconds
        self.buckets[bisect_left(BUCKETS, milliseconds)] += 1


class RequestMetrics:
    """All series of one process."""

    def __init__(self, cluster: str = "Kubernetes", max_series: int = MAX_SERIES) -> None:
        self._cluster = cluster
        self._max_series = max_series
        self._series: dict[str, Series] = {}

    def __len__(self) -> int:
        return len(self._series)

    def series(self, requests: Requests) -> Series:
        """The series of *requests*; keep the result, finding it is not cheap."""
        labels = format_labels(labels_of(requests, self._cluster))
        found = self._series.get(labels)
        if found is None:
            if len(self._series) >= self._max_series:
                labels = f'reporter="{OTHER}"'
                found = self._series.get(labels)
            if found is None:
                found = self._series[labels] = Series(labels)
        return found

    def exposition(self) -> str:
        """All series as Prometheus text format 0.0.4."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"# HELP {_TOTAL} The total number of requests"
        yield f"# TYPE {_TOTAL} counter"
        for series in self._series.values():
            yield f"{_TOTAL}{{{series.labels}}} {series.count}"
        yield f"# HELP {_DURATION} The time from a request's head to the end of its answer"
        yield f"# TYPE {_DURATION} histogram"
        for series in self._series.values():
            yield from _histogram(series)


def _histogram(series: Series) -> Iterator[str]:
    total = 0
    for bound, count in zip((*BUCKETS, "+Inf"), series.buckets, strict=True):
        total += count
        yield f'{_DURATION}_bucket{{{series.labels},le="{bound}"}} {total}'
    yield f"{_DURATION}_sum{{{series.labels}}} {series.milliseconds:.3f}"
    yield f"{_DURATION}_count{{{series.labels}}} {series.count}"


def labels_of(requests: Requests, cluster: str) -> dict[str, str]:
    """Istio's labels; what is not known is ``unknown``."""
    destination = requests.destination
    name, _, rest = requests.service.partition(".")
    namespace = rest.partition(".")[0] or (destination.namespace if destination else "")
    labels = {
        "reporter": requests.reporter,
        **_side("source", requests.source, requests.source_identity, cluster),
        **_side("destination", destination, requests.destination_identity, cluster),
        "destination_service": requests.service,
        "destination_service_name": name,
        "destination_service_namespace": namespace,
        "request_protocol": "http",
        "response_code": str(requests.status),
        "response_flags": requests.flag,
        "connection_security_policy": "mutual_tls" if requests.mutual_tls else "none",
    }
    return {label: value or UNKNOWN for label, value in labels.items()}


def _side(prefix: str, workload: Workload | None, identity: SpiffeId | None, cluster: str) -> dict[str, str]:
    values = [""] * len(_SIDE)
    if workload is not None:
        app, version = workload.canonical_name, workload.canonical_revision
        values = [workload.workload_name or workload.name, workload.namespace, "", app, version, app, version]
    values[_SIDE.index("principal")] = str(identity or "")
    named = {f"{prefix}_{label}": value for label, value in zip(_SIDE, values, strict=True)}
    return named | {f"{prefix}_cluster": cluster if workload is not None else ""}


def format_labels(labels: dict[str, str]) -> str:
    """``a="1",b="2"`` with the escapes of the text format."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
