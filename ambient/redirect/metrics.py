"""What the agent counts, as Prometheus text. Pure; served on the port of Istio's CNI agent."""

from __future__ import annotations

from collections.abc import Iterator

from ambient.redirect.attestation import AttestationStatistics
from ambient.redirect.attestation_plan import What

METRICS_PORT = 15014
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def exposition(now: AttestationStatistics) -> str:
    """Everything; no series is for one pod, so that their number is bounded."""
    repairs = {f'{{what="{what.value}"}}': now.repairs.get(what.value, 0) for what in What}
    lines = (
        *_series("ambient_pods_enrolled", "gauge", "Pods that are captured and attested", {"": now.enrolled}),
        *_series("ambient_pods_lost", "gauge", "Pods that are to be captured and are not", {"": now.lost}),
        *_series(
            "ambient_plaintext_connections",
            "gauge",
            "Connections of enrolled pods that are older than their enrollment",
            {"": sum(now.plaintext.values())},
        ),
        *_series("ambient_attestation_checks_total", "counter", "Looks at enrolled pods", {"": now.checks}),
        *_series("ambient_attestation_repairs_total", "counter", "What was put right", repairs),
        *_series("ambient_attestation_lost_total", "counter", "How often a pod was lost", {"": now.given_up}),
    )
    return "".join(f"{line}\n" for line in lines)


def _series(name: str, kind: str, text: str, values: dict[str, int]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for labels, value in values.items():
        yield f"{name}{labels} {value}"
