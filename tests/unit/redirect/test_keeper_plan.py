"""What a keeper does next, as a table, and what of it never depends on how it came about."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.model.identity import SpiffeId
from ambient.redirect.keeper_plan import State, Step, next_step, should_stand, workload_of
from ambient.redirect.plan import Capture, capture_plan, closed_plan, drain_plan
from ambient.wire.xds import NodePod

NOTHING_NEW = {"asked": False, "judged": False, "drained": False}


@pytest.mark.parametrize(
    ("state", "wanted", "news", "step"),
    [
        (State.NONE, True, {"asked": True}, Step.ENROLL),
        (State.FAILED, True, {"asked": True}, Step.ENROLL),
        (State.FAILED, True, {}, Step.NOTHING),
        (State.DRAINING, True, {"asked": True}, Step.ENROLL),
        (State.DRAINING, True, {"drained": True}, Step.NOTHING),
        (State.ENROLLED, True, {}, Step.MEND),
        (State.ENROLLED, True, {"judged": True}, Step.PUT_RIGHT),
        (State.ENROLLED, True, {"judged": True, "asked": True}, Step.PUT_RIGHT),
        (State.LOST, True, {}, Step.RECOVER),
        (State.ENROLLED, False, {}, Step.RELEASE),
        (State.ENROLLED, False, {"judged": True}, Step.RELEASE),
        (State.LOST, False, {}, Step.RELEASE),
        (State.FAILED, False, {}, Step.RELEASE),
        (State.DRAINING, False, {}, Step.NOTHING),
        (State.DRAINING, False, {"asked": True}, Step.RELEASE),
        (State.DRAINING, False, {"asked": True, "drained": True}, Step.FINISH),
        (State.NONE, False, {"asked": True}, Step.TELL),
        (State.NONE, False, {"drained": True}, Step.NOTHING),
    ],
)
def test_what_comes_next(state: State, wanted: bool, news: dict[str, bool], step: Step) -> None:
    assert next_step(state, wanted=wanted, **{**NOTHING_NEW, **news}) is step


@given(st.sampled_from(State), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_nobody_is_enrolled_against_control_s_word(
    state: State, wanted: bool, asked: bool, judged: bool, drained: bool
) -> None:
    step = next_step(state, wanted=wanted, asked=asked, judged=judged, drained=drained)
    if step in (Step.ENROLL, Step.RECOVER, Step.MEND, Step.PUT_RIGHT):
        assert wanted
    if step in (Step.RELEASE, Step.FINISH):
        assert not wanted


@pytest.mark.parametrize(
    ("state", "strict", "table"),
    [
        (State.ENROLLED, True, capture_plan(Capture())),
        (State.ENROLLED, False, capture_plan(Capture())),
        (State.LOST, True, closed_plan(Capture())),
        (State.LOST, False, drain_plan()),
        (State.DRAINING, True, drain_plan()),
        (State.NONE, True, None),
        (State.FAILED, True, None),
    ],
)
def test_what_should_stand(state: State, strict: bool, table: object) -> None:
    assert should_stand(state, Capture(), strict=strict) == table


def test_ztunnel_is_told_of_the_identity_that_the_pod_has() -> None:
    pod = NodePod(
        uid="u",
        namespace="shop",
        name="web",
        service_account="cashier",
        addresses=(),
        netns="/x",
        dns_capture=True,
    )

    told = workload_of(pod)

    assert told.identity == SpiffeId("cluster.local", "shop", "cashier")
    assert (told.uid, told.name, told.dns_capture) == ("u", "web", True)
