"""A pod as control knows it: what it was asked to be, and what the supervisor says it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ambient.control.capture_plan import Capture
from ambient.model.enrollment import Mode
from ambient.model.identity import DEFAULT_TRUST_DOMAIN, SpiffeId
from ambient.model.podspec import PodSpec


class Role(Enum):
    """What runs in a pod."""

    APP = "app"
    WAYPOINT = "waypoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The supervisor's last word on a pod.

    Attributes:
        pid: Host pid of the first container, 0 if none runs.
        netns: Path of its network namespace, "" if it has none.
        started: Unix seconds.
        containers: ``{name, pid, ready, restarts}`` each.
    """

    phase: str = "Pending"
    ready: bool = False
    pid: int = 0
    netns: str = ""
    started: float = 0.0
    restarts: int = 0
    reason: str = ""
    containers: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A network namespace that somebody else made and that counts as a pod: where it is, and what it has."""

    node: str
    addresses: tuple[str, ...]
    status: Status


@dataclass(slots=True, kw_only=True, eq=False)
class Pod:
    """One pod, until it is removed. A restart makes another one with the same name and addresses.

    Attributes:
        owner: ``kind/name`` of what it belongs to; ``"Pod/<name>"`` for a bare one.
        mode: How it was started: SIDECAR, or NONE (ambient is live and does not show here).
        engine: Whose sidecar or waypoint, ``"ambient"`` or ``"envoy"``.
        labels: Its own, with what ``enroll pod/...`` wrote over them.
        existing: What enrollment does to older connections: ``"keep"`` or ``"reset"``.
        guest: Whether somebody else made and runs it: it can be captured, but not started anew.
        ending: No service sends to it any more.
        leaving_version: The registry version that said so, 0 until it is published; the pod is removed
            when every daemon has applied it.
    """

    uid: str
    namespace: str
    name: str
    owner: str
    node: str
    addresses: tuple[str, ...]
    spec: PodSpec
    role: Role = Role.APP
    mode: Mode = Mode.NONE
    engine: str = "ambient"
    labels: dict[str, str] = field(default_factory=dict)
    existing: str = "keep"
    guest: bool = False
    status: Status = field(default_factory=Status)
    capture: Capture = field(default_factory=Capture)
    ending: bool = False
    leaving_version: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """Namespace and name."""
        return self.namespace, self.name

    @property
    def identity(self) -> SpiffeId:
        """The SPIFFE ID of its service account."""
        return SpiffeId(DEFAULT_TRUST_DOMAIN, self.namespace, self.spec.service_account)

    @property
    def runnable(self) -> bool:
        """Whether it has a network namespace in which something can be done."""
        return bool(self.status.netns) and not self.ending

    @property
    def ready(self) -> bool:
        """Whether services may send to it."""
        return self.status.ready and not self.ending
