"""What a waypoint serves, and for a while what it served until just now.

When a waypoint is deleted, or a service moves to another, the waypoint may hear of it before the sources
do: CONNECTs that were on their way, and requests on connections admitted before, must still be answered.
"""

from __future__ import annotations

from collections.abc import Callable

from ambient.model.mesh import Mesh
from ambient.model.service import Service
from ambient.model.workload import Workload

# Every ztunnel has heard of a change by then, or control counts it as gone. Picked, not measured.
GRACE_SECONDS = 10.0


class Served:
    """The addresses that name our waypoint as theirs.

    Attributes:
        me: Our own workload as last known; None before it was.
    """

    def __init__(self, mesh: Mesh, uid: str, clock: Callable[[], float]) -> None:
        self._mesh = mesh
        self._uid = uid
        self._clock = clock
        self._until: dict[str, float] = {}
        self._now: set[str] = set()
        self.me: Workload | None = None
        self.mesh_changed()

    def mesh_changed(self) -> None:
        """Learn what we serve now; what is not named any more is remembered for a while."""
        self.me = self._mesh.workload(self._uid) or self.me
        before, self._now = self._now, self._addresses()
        now = self._clock()
        self._until = {ip: when for ip, when in self._until.items() if when > now and ip not in self._now}
        self._until |= dict.fromkeys(before - self._now, now + GRACE_SECONDS)

    def lately(self, ip: str) -> bool:
        """Whether *ip* is not ours any more, but was until just now."""
        return self._until.get(ip, 0.0) > self._clock()

    def now(self, ip: str) -> bool:
        """Whether *ip* is ours."""
        return ip in self._now

    def _addresses(self) -> set[str]:
        waypoint = self.me.waypoint_for if self.me is not None else ""
        if not waypoint:
            return set()
        owners: list[Service | Workload] = [*self._mesh.services(), *self._mesh.workloads()]
        return {ip for owner in owners if owner.waypoint == waypoint for ip in owner.addresses}
