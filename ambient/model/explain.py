"""Why a connection would be let through or not: the way it takes and the rule that decides.

Floor 0: asks ``route``, ``admit`` and ``decide`` themselves, so that it cannot disagree with the
data path.
"""

from __future__ import annotations

from dataclasses import dataclass

from ambient.model.mesh import Mesh
from ambient.model.policy import Verdict
from ambient.model.service import Service
from ambient.model.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The answer of ``authz check``.

    Attributes:
        policy: Key of the policy that decided, or "".
        layer: Who decides: ``"ztunnel"``, ``"sidecar"``, ``"route"`` (no way there) or ``"none"``.
        path: The way, one step each, for people: ``"ztunnel/node-1"``, ``"waypoint bookinfo/waypoint"``.
    """

    verdict: Verdict
    policy: str
    layer: str
    path: tuple[str, ...]


def authz_check(mesh: Mesh, source: Workload, destination: Workload | Service, port: int) -> Explanation:
    """Explain what happens to a connection from *source* to *port* of *destination*."""
    raise NotImplementedError
