"""What stands in the way of enrolling a pod, found before anything is done. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ambient.control.enrollment_plan import immovable
from ambient.control.pods import Pod
from ambient.control.store_plan import Store
from ambient.model.enrollment import Mode
from ambient.model.network_policy import blocks
from ambient.model.podspec import DEFAULT_SERVICE_ACCOUNT

HBONE_PORT = 15008


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that stands in the way, or is worth knowing.

    Attributes:
        blocks: Whether enrollment would fail, or leave the pod cut off.
        hint: What to do about it.
    """

    blocks: bool
    reason: str
    hint: str

    def as_dict(self) -> dict[str, Any]:
        """As the admin wire carries it."""
        return {"blocks": self.blocks, "reason": self.reason, "hint": self.hint}


def findings(pod: Pod, store: Store, survey: Mapping[str, Any] | None) -> tuple[Finding, ...]:
    """Everything that is known about enrolling *pod*.

    Args:
        survey: Its agent's answer; None if it gave none.
    """
    if reason := immovable(pod, Mode.AMBIENT):
        return (Finding(blocks=True, reason=reason, hint=""),)
    return (*_on_the_node(pod, survey), *_service_account(pod, store), *_network_policies(pod, store))


def _on_the_node(pod: Pod, survey: Mapping[str, Any] | None) -> tuple[Finding, ...]:
    if survey is None:
        hint = f"see: ambient status, ambient logs agent/{pod.node}"
        return (Finding(blocks=True, reason=f"the agent of {pod.node} does not answer", hint=hint),)
    found = []
    if blocker := str(survey.get("blocker", "")):
        hint = "the proxy needs 15001, 15006 and 15008" if blocker.startswith("port ") else ""
        found.append(Finding(blocks=True, reason=blocker, hint=hint))
    if note := str(survey.get("note", "")):
        found.append(Finding(blocks=False, reason=note, hint="needed once DNS is captured"))
    return tuple(found)


def _service_account(pod: Pod, store: Store) -> tuple[Finding, ...]:
    name = pod.spec.service_account
    if name == DEFAULT_SERVICE_ACCOUNT or store.get("ServiceAccount", pod.namespace, name) is not None:
        return ()
    reason = f"its service account {name!r} does not exist in namespace {pod.namespace!r}"
    return (Finding(blocks=True, reason=reason, hint="apply it: the pod's identity is named after it"),)


def _network_policies(pod: Pod, store: Store) -> tuple[Finding, ...]:
    policies = store.of_kind("NetworkPolicy")
    return tuple(
        Finding(
            blocks=True,
            reason=f"NetworkPolicy {name!r} lets no HBONE {way} (TCP {HBONE_PORT})",
            hint=f"add a rule to it that allows TCP {HBONE_PORT}",
        )
        for direction, way in (("Ingress", "in"), ("Egress", "out"))
        if (name := blocks(policies, pod.namespace, pod.labels, HBONE_PORT, direction))
    )
