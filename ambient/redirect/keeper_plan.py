"""What comes next for one pod of the node, and what is told of it. Pure.

::

    NONE --wanted--> ENROLLED --unwanted--> DRAINING --last captured connection ended--> NONE
      \\                | ^                      \\
       +--> FAILED      | +-- repaired           +--wanted--> ENROLLED
                        v
                       LOST: could not be kept, tried again from time to time
"""

from __future__ import annotations

from enum import Enum, auto

from ambient.model.identity import DEFAULT_TRUST_DOMAIN, SpiffeId
from ambient.redirect.plan import Capture, capture_plan, closed_plan, drain_plan
from ambient.wire.nft import Table
from ambient.wire.xds import NodePod
from ambient.wire.zds import WorkloadInfo


class State(Enum):
    """Where a pod stands; the values go into reports."""

    NONE = "none"
    ENROLLED = "enrolled"
    LOST = "lost"
    DRAINING = "draining"
    FAILED = "failed"


class Step(Enum):
    """What a keeper does next."""

    NOTHING = auto()
    ENROLL = auto()
    MEND = auto()  # Make sure of what should be there already.
    PUT_RIGHT = auto()  # What attestation found wrong.
    RECOVER = auto()  # Try again to enroll what was lost.
    RELEASE = auto()
    FINISH = auto()  # Nothing captured is left of it.
    TELL = auto()


def next_step(state: State, *, wanted: bool, asked: bool, judged: bool, drained: bool) -> Step:
    """Return what is to be done for a pod in *state*.

    Args:
        wanted: Whether control wants it enrolled.
        asked: Whether control has said something since the last step.
        judged: Whether attestation has.
        drained: Whether ztunnel has nothing left of it.
    """
    match wanted, state:
        case True, State.ENROLLED:
            return Step.PUT_RIGHT if judged else Step.MEND
        case True, State.LOST:
            return Step.RECOVER
        case True, _:
            return Step.ENROLL if asked else Step.NOTHING
        case False, State.ENROLLED | State.FAILED | State.LOST:
            return Step.RELEASE
        case False, State.DRAINING if drained:
            return Step.FINISH
        case False, State.DRAINING if asked:
            return Step.RELEASE
        case False, State.NONE if asked:
            return Step.TELL
        case _:
            return Step.NOTHING


def should_stand(state: State, capture: Capture, *, strict: bool) -> Table | None:
    """The rules that the namespace of a pod in *state* should hold; *strict*: policy refuses plaintext."""
    match state:
        case State.ENROLLED:
            return capture_plan(capture)
        case State.LOST if strict:
            return closed_plan(capture)
        case State.DRAINING | State.LOST:
            return drain_plan()
        case _:
            return None


def workload_of(pod: NodePod) -> WorkloadInfo:
    """The pod as ztunnel is told of it."""
    return WorkloadInfo(
        uid=pod.uid,
        name=pod.name,
        namespace=pod.namespace,
        service_account=pod.service_account,
        identity=SpiffeId(DEFAULT_TRUST_DOMAIN, pod.namespace, pod.service_account),
        dns_capture=pod.dns_capture,
    )
