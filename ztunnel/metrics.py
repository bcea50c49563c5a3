"""Istio's TCP metrics, counted per pair of workloads and written as Prometheus text.

Pure: no clock, no I/O; the daemon serves ``exposition()`` on port 15020.

Source: Istio's standard metrics and the label set of ztunnel (``src/proxy/metrics.rs``). Unlike there, the
number of series is bounded: whoever can make workloads appear must not make this process grow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ambient.model.identity import SpiffeId
from ambient.model.record import Flag
from ambient.model.workload import Workload

# 250 pods of a node (ztunnel's design size) times 8 peers each; picked, not measured. About 1.5 kB a series.
MAX_SERIES = 2000

UNKNOWN = "unknown"
OTHER = "other"

_SIDE = (
    "workload",
    "canonical_service",
    "canonical_revision",
    "workload_namespace",
    "principal",
    "app",
    "version",
    "cluster",
    # We know no localities; dashboards group by these all the same.
    "region",
    "zone",
)
LABELS = (
    "reporter",
    *(f"source_{name}" for name in _SIDE),
    *(f"destination_{name}" for name in _SIDE),
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "connection_security_policy",
)

_HELP = {
    "istio_tcp_connections_opened_total": "The total number of TCP connections opened",
    "istio_tcp_connections_closed_total": "The total number of TCP connections closed",
    "istio_tcp_sent_bytes_total": "The total number of bytes sent to the source in response",
    "istio_tcp_received_bytes_total": "The total number of bytes received from the source in request",
    "istio_tcp_connections_failed_total": "TCP connections that could not be established (unstable)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What a series is about; equal values are one series.

    Attributes:
        reporter: ``"source"`` or ``"destination"``.
        service: Host name that was addressed, or "".
        source_identity, destination_identity: Proven by certificates; both None without mutual TLS.
    """

    reporter: str
    source: Workload | None
    destination: Workload | None
    service: str = ""
    source_identity: SpiffeId | None = None
    destination_identity: SpiffeId | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """What tells two series apart, cheaper to hash than all that it names."""
        return (
            self.reporter,
            self.source.uid if self.source else "",
            self.destination.uid if self.destination else "",
            self.service,
            self.source_identity,
            self.destination_identity,
        )


@dataclass(slots=True)
class Series:
    """The running counts of one ``Traffic``.

    Attributes:
        sent: Bytes towards the source; Istio's metrics look from the destination at both ends.
        received: Bytes from the source.
        closed_well: Ended connections that ended well.
        closed: The others, by how they ended.
        failed: Those of them that never carried a byte, and those that were refused before anybody knew
            whose they are.
    """

    labels: str
    opened: int = 0
    sent: int = 0
    received: int = 0
    closed_well: int = 0
    closed: dict[Flag, int] = field(default_factory=dict)
    failed: dict[Flag, int] = field(default_factory=dict)


class TcpMetrics:
    """All series of one process."""

    def __init__(self, cluster: str = "Kubernetes", max_series: int = MAX_SERIES) -> None:
        self._cluster = cluster
        self._max_series = max_series
        self._series: dict[tuple[object, ...], Series] = {}

    def __len__(self) -> int:
        return len(self._series)

    def opened(self, traffic: Traffic) -> Series:
        """Count one more open connection and return its series, for ``closed``."""
        series = self._find(traffic)
        series.opened += 1
        return series

    def failed(self, reporter: str, traffic: Traffic | None, flag: Flag) -> None:
        """Count a connection that was not established; *traffic* is None if nobody knows whose it was."""
        series = self._find(traffic or Traffic(reporter=reporter, source=None, destination=None))
        series.failed[flag] = series.failed.get(flag, 0) + 1

    def exposition(self) -> str:
        """All series as Prometheus text format 0.0.4."""
        return "".join(self.lines())

    def lines(self) -> Iterator[str]:
        """The same line by line; what is counted meanwhile may be in it or not."""
        series = tuple(self._series.values())
        for name, text in _HELP.items():
            yield f"# HELP {name} {text}\n# TYPE {name} counter\n"
            for each in series:
                for sample in _samples(name, each):
                    yield f"{sample}\n"

    def _find(self, traffic: Traffic) -> Series:
        found = self._series.get(traffic.key)
        if found is None:
            if len(self._series) >= self._max_series:
                return self._overflow(traffic.reporter)
            found = self._series[traffic.key] = Series(format_labels(labels_of(traffic, self._cluster)))
        return found

    def _overflow(self, reporter: str) -> Series:
        found = self._series.get((OTHER, reporter))
        if found is None:
            labels = dict.fromkeys(LABELS, OTHER) | {"reporter": reporter, "request_protocol": "tcp"}
            found = self._series[(OTHER, reporter)] = Series(format_labels(labels))
        return found


def closed(series: Series, flag: Flag) -> None:
    """Count the end of a connection whose beginning ``TcpMetrics.opened`` counted, by how it ended."""
    if flag is Flag.NONE:
        series.closed_well += 1  # Nearly all, and an enumeration is slow to hash.
    else:
        series.closed[flag] = series.closed.get(flag, 0) + 1


def labels_of(traffic: Traffic, cluster: str) -> dict[str, str]:
    """Istio's labels; what is not known is ``unknown``."""
    mtls = traffic.source_identity is not None or traffic.destination_identity is not None
    destination = traffic.destination
    name, namespace = _service_name(traffic.service)
    labels = {
        "reporter": traffic.reporter,
        **_side("source", traffic.source, traffic.source_identity, cluster),
        **_side("destination", destination, traffic.destination_identity, cluster),
        "destination_service": traffic.service,
        "destination_service_name": name,
        "destination_service_namespace": namespace or (destination.namespace if destination else ""),
        "request_protocol": "tcp",
        "connection_security_policy": "mutual_tls" if mtls else UNKNOWN,
    }
    return {label: labels[label] or UNKNOWN for label in LABELS}


def _side(prefix: str, workload: Workload | None, identity: SpiffeId | None, cluster: str) -> dict[str, str]:
    values = [""] * len(_SIDE)
    if workload is not None:
        service, revision = workload.canonical_name, workload.canonical_revision
        name = workload.workload_name or workload.name
        values = [name, service, revision, workload.namespace, "", service, revision, cluster, "", ""]
    values[_SIDE.index("principal")] = str(identity or "")
    return {f"{prefix}_{label}": value for label, value in zip(_SIDE, values, strict=True)}


def side_labels(prefix: str, workload: Workload | None, cluster: str) -> dict[str, str]:
    """The labels of one end, ``unknown`` where nothing is known."""
    identity = workload.identity if workload is not None else None
    return {name: value or UNKNOWN for name, value in _side(prefix, workload, identity, cluster).items()}


def _service_name(hostname: str) -> tuple[str, str]:
    match hostname.split("."):
        case [name, namespace, "svc", *_]:
            return name, namespace
        case _:
            return hostname, ""


def format_labels(labels: dict[str, str]) -> str:
    """``a="1",b="2"`` with the escapes of the text format."""
    return ",".join(f'{name}="{_escape(value)}"' for name, value in labels.items())


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _samples(name: str, series: Series) -> Iterator[str]:
    match name:
        case "istio_tcp_connections_opened_total":
            yield _sample(name, series, Flag.NONE, series.opened)
        case "istio_tcp_connections_closed_total":
            if series.closed_well:
                yield _sample(name, series, Flag.NONE, series.closed_well)
            for flag, count in series.closed.items():
                yield _sample(name, series, flag, count)
        case "istio_tcp_connections_failed_total":
            for flag, count in series.failed.items():
                yield _sample(name, series, flag, count)
        case "istio_tcp_sent_bytes_total":
            yield _sample(name, series, Flag.NONE, series.sent)
        case _:
            yield _sample(name, series, Flag.NONE, series.received)


def _sample(name: str, series: Series, flag: Flag, value: int) -> str:
    return f'{name}{{{series.labels},response_flags="{flag.value}"}} {value}'
