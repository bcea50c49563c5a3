"""The registry: what every daemon is to know, as one immutable snapshot, and the change between two. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from ambient.model.mesh import Change
from ambient.model.policy import Policy
from ambient.model.service import Service
from ambient.model.workload import Workload

V = TypeVar("V")


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Everything that is distributed; *version* grows with every publication."""

    version: int = 0
    workloads: Mapping[str, Workload] = field(default_factory=dict)
    services: Mapping[str, Service] = field(default_factory=dict)
    policies: Mapping[str, Policy] = field(default_factory=dict)

    def same_as(self, other: Registry) -> bool:
        """Whether both say the same, whatever their versions."""
        mine = (self.workloads, self.services, self.policies)
        return mine == (other.workloads, other.services, other.policies)


def change_between(before: Registry | None, after: Registry) -> Change:
    """Return the change that makes *before* into *after*: a snapshot if there is no before."""
    old = before or Registry()
    return Change(
        workloads=_new(old.workloads, after.workloads),
        services=_new(old.services, after.services),
        policies=_new(old.policies, after.policies),
        removed_workloads=_gone(old.workloads, after.workloads),
        removed_services=_gone(old.services, after.services),
        removed_policies=_gone(old.policies, after.policies),
        snapshot=before is None,
    )


def is_empty(change: Change) -> bool:
    """Whether *change* says nothing (a snapshot always says something: "this is all")."""
    named = change.workloads or change.services or change.policies
    gone = change.removed_workloads or change.removed_services or change.removed_policies
    return not (change.snapshot or named or gone)


def _new(before: Mapping[str, V], after: Mapping[str, V]) -> tuple[V, ...]:
    # By identity first: most values of two registries are the same objects (``registry_builder``).
    return tuple(
        value for key, value in after.items() if (old := before.get(key)) is not value and old != value
    )


def _gone(before: Mapping[str, V], after: Mapping[str, V]) -> tuple[str, ...]:
    return tuple(key for key in before if key not in after)
