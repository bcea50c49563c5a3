"""Which node a pod runs on. Pure.

Kubernetes' order, made small: what the pod prefers, then spreading: away from its own kind first (replicas
of one Deployment), then to the emptier node, then by the nodes' order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ambient.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Placed:
    """A pod that has its node: enough to spread others."""

    node: str
    owner: str


def choose_node(
    nodes: Sequence[str],
    placed: Iterable[Placed],
    *,
    owner: str,
    preferred: Sequence[str] = (),
) -> str:
    """Return the node for a new pod.

    Args:
        nodes: Those that have room.
        placed: The pods that run, or will.
        owner: ``namespace/kind/name`` of what the pod belongs to.
        preferred: Nodes it would rather run on, best first.

    Raises:
        ConfigError: there is no node.
    """
    if not nodes:
        raise ConfigError("no node has room")
    others = tuple(placed)
    same = Counter(each.node for each in others if each.owner == owner)
    load = Counter(each.node for each in others)
    wishes = {name: rank for rank, name in reversed(list(enumerate(preferred)))}

    def cost(node: str) -> tuple[int, int, int, int]:
        return wishes.get(node, len(wishes)), same[node], load[node], nodes.index(node)

    return min(nodes, key=cost)
