"""What probes mean for a container."""

from __future__ import annotations

from ambient.fabric.probe_plan import EAGER_SECONDS, ProbeState, answered, interval
from ambient.model.podspec import Probe, ProbeKind

PROBE = Probe(kind=ProbeKind.TCP, port=80, period=10.0, failure_threshold=3)


def after(answers: list[tuple[float, bool]], probe: Probe = PROBE) -> ProbeState:
    state = ProbeState()
    for now, ok in answers:
        state = answered(probe, state, ok, now)
    return state


def test_ready_with_the_first_success() -> None:
    """Kubernetes' default success threshold is one."""
    assert after([(0, False), (0.1, True)]).passing is True


def test_eager_questions_do_not_use_up_the_failures() -> None:
    """A program that needs 5 s to start must not be killed by 50 quick questions."""
    answers = [(0.1 * n, False) for n in range(50)]

    assert after(answers).passing is None


def test_failures_in_a_row_at_their_period_count() -> None:
    """Three periods of silence are a failure, and one answer between them starts anew."""
    assert after([(0, True), (10, False), (20, False), (30, False)]).passing is False
    assert after([(0, True), (10, False), (20, False), (30, True), (40, False)]).passing is True


def test_success_threshold_counts_in_a_row() -> None:
    """A flapping readiness must be steady before traffic comes."""
    probe = Probe(kind=ProbeKind.TCP, port=80, period=1.0, success_threshold=2)

    assert after([(0, True), (1, False), (2, True)], probe).passing is None
    assert after([(0, True), (1, False), (2, True), (3, True)], probe).passing is True


def test_questions_are_quick_until_it_passes() -> None:
    """Somebody waits for the pod to be ready; nobody waits for it to go on being so."""
    assert interval(PROBE, ProbeState()) == EAGER_SECONDS
    assert interval(PROBE, ProbeState(passing=True)) == 10.0
