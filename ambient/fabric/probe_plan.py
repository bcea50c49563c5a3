"""What probes mean for a container: ready, not ready, kill. Pure.

Kubernetes' rules: a startup probe holds back the others until it has succeeded once; readiness
counts successes and failures in a row against its thresholds; liveness kills. One thing is quicker
than there: until a probe has succeeded once it is asked every ``EAGER_SECONDS``, because on a desk
somebody is waiting, and a failure counts against a threshold once a period all the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from ambient.model.podspec import Probe

# Between two questions before the first success; picked, not measured.
EAGER_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class ProbeState:
    """One probe's run of luck.

    Attributes:
        passing: What the probe says by its thresholds; None before it has said anything.
        counted: When the last failure was counted, seconds on the caller's clock.
    """

    passing: bool | None = None
    successes: int = 0
    failures: int = 0
    counted: float = float("-inf")


def answered(probe: Probe, state: ProbeState, ok: bool, now: float) -> ProbeState:
    """The state after one answer."""
    if ok:
        successes = state.successes + 1
        passing = True if successes >= probe.success_threshold else state.passing
        return ProbeState(passing, successes, 0, state.counted)
    # Asked before its time (see above); the tolerance is for clocks and sleeps.
    if now - state.counted < probe.period * 0.95:
        return state
    failures = state.failures + 1
    passing = False if failures >= probe.failure_threshold else state.passing
    return ProbeState(passing, 0, failures, now)


def interval(probe: Probe, state: ProbeState) -> float:
    """Seconds until the next question."""
    return probe.period if state.passing else min(probe.period, EAGER_SECONDS)
