"""The order of enrollment, as a table."""

from __future__ import annotations

import pytest

from ambient.control.capture_plan import UNMOVED, Capture, Phase, published, reported, step
from ambient.wire.xds import PodReport


def moved(
    phase: Phase, *, wanted: bool, runnable: bool = True, version: int = 0, applied: bool = False
) -> Phase:
    capture = Capture(phase=phase, version=version, reason="x" if phase is Phase.FAILED else "")
    return step(capture, wanted=wanted, runnable=runnable, applied=lambda _: applied).phase


@pytest.mark.parametrize(
    ("before", "facts", "after"),
    [
        (Phase.OUT, {"wanted": True}, Phase.ENTERING),
        (Phase.OUT, {"wanted": True, "runnable": False}, Phase.OUT),
        (Phase.OUT, {"wanted": False}, Phase.OUT),
        (Phase.ENTERING, {"wanted": True}, Phase.ENTERING),
        (Phase.ENTERING, {"wanted": False}, Phase.RELEASING),
        (Phase.IN, {"wanted": True}, Phase.IN),
        (Phase.IN, {"wanted": False}, Phase.LEAVING),
        (Phase.LEAVING, {"wanted": True}, Phase.IN),
        (Phase.LEAVING, {"wanted": False, "version": 3}, Phase.LEAVING),
        (Phase.LEAVING, {"wanted": False, "version": 3, "applied": True}, Phase.RELEASING),
        (Phase.LEAVING, {"wanted": False, "version": 0, "applied": True}, Phase.LEAVING),
        (Phase.RELEASING, {"wanted": True}, Phase.ENTERING),
        (Phase.RELEASING, {"wanted": False}, Phase.RELEASING),
        (Phase.FAILED, {"wanted": True}, Phase.FAILED),
        (Phase.FAILED, {"wanted": False}, Phase.OUT),
    ],
    ids=str,
)
def test_what_comes_next(before: Phase, facts: dict[str, bool], after: Phase) -> None:
    """One step at a time; never released before everybody has heard."""
    assert moved(before, **facts) is after  # type: ignore[arg-type]


@pytest.mark.parametrize("runnable", [False, True])
@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("version", [0, 3])
def test_what_is_passed_over_would_not_have_moved(runnable: bool, applied: bool, version: int) -> None:
    """And what could move is not passed over, but where it only could if it ran or everybody had heard."""
    for phase in Phase:
        for wanted in (False, True):
            after = moved(phase, wanted=wanted, runnable=runnable, version=version, applied=applied)
            if (phase, wanted) in UNMOVED:
                assert after is phase
            elif runnable and applied and version:
                assert after is not phase


@pytest.mark.parametrize(
    ("before", "state", "after"),
    [
        (Phase.ENTERING, "enrolled", Phase.IN),
        (Phase.ENTERING, "failed", Phase.FAILED),
        (Phase.ENTERING, "draining", Phase.ENTERING),
        (Phase.ENTERING, "none", Phase.ENTERING),
        (Phase.RELEASING, "enrolled", Phase.RELEASING),
        (Phase.RELEASING, "draining", Phase.OUT),
        (Phase.RELEASING, "none", Phase.OUT),
        (Phase.RELEASING, "failed", Phase.FAILED),
        (Phase.IN, "none", Phase.IN),
        (Phase.IN, "failed", Phase.FAILED),
        (Phase.LEAVING, "none", Phase.LEAVING),
        (Phase.OUT, "enrolled", Phase.OUT),
    ],
    ids=str,
)
def test_what_a_report_moves(before: Phase, state: str, after: Phase) -> None:
    """A word that comes too late changes nothing."""
    report = PodReport(pod="u", state=state, reason="because")

    assert reported(Capture(phase=before), report).phase is after


def test_draining_ends_when_the_agent_says_so() -> None:
    """Out of the mesh at once; the last connections are shown until they end."""
    out = reported(Capture(phase=Phase.RELEASING), PodReport(pod="u", state="draining"))

    assert out.draining
    assert not reported(out, PodReport(pod="u", state="none")).draining


def test_leaving_takes_the_version_that_says_so_once() -> None:
    """A later publication must not put it off."""
    first = published(Capture(phase=Phase.LEAVING), 4)

    assert published(first, 5).version == 4
    assert published(Capture(phase=Phase.IN), 4).version == 0


def test_what_peers_and_agents_are_told() -> None:
    """Advertised later than captured, and un-advertised earlier."""
    told = {phase: (Capture(phase=phase).captured, Capture(phase=phase).advertised) for phase in Phase}

    assert told == {
        Phase.OUT: (False, False),
        Phase.ENTERING: (True, False),
        Phase.IN: (True, True),
        Phase.LOST: (True, False),
        Phase.LEAVING: (True, False),
        Phase.RELEASING: (False, False),
        Phase.FAILED: (False, False),
    }
