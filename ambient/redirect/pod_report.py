"""A pod as control is told of it. Pure."""

from __future__ import annotations

from ambient.redirect.keeper_plan import State
from ambient.redirect.pod_capture import Existing
from ambient.redirect.survey import shown
from ambient.wire.xds import NodePod, PodReport


def report_of(
    pod: NodePod, state: State, reason: str, existing: Existing | None, *, repairs: int, duration_ms: float
) -> PodReport:
    """What control is told of *pod*; *existing* is None where nobody counted. Pure."""
    counted = existing or Existing()
    return PodReport(
        pod=pod.uid,
        state=state.value,
        reason=reason,
        established_kept=-1 if existing is None else len(existing.kept),
        established_reset=len(counted.reset),
        existing=tuple(shown(counted.kept + counted.reset)),
        repairs=repairs,
        duration_ms=duration_ms,
    )
