"""Which node a pod runs on. Pure.

Kubernetes' order, made small: what the pod requires, then what it prefers, then spreading: away from its
own kind first (replicas of one Deployment), then to the emptier node, then by the nodes' order.
"""

from __future__ import annotations

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
    required: str = "",
    preferred: Sequence[str] = (),
) -> str:
    """Return the node for a new pod.

    Args:
        placed: The pods that run, or will.
        owner: ``namespace/kind/name`` of what the pod belongs to.
        required: Name of the one node it may run on, or "".
        preferred: Nodes it would rather run on, best first.

    Raises:
        ConfigError: it requires a node that does not exist.
    """
    if required and required not in nodes:
        raise ConfigError(f"needs node {required!r}; the mesh has {', '.join(nodes) or 'none'}")
    others = tuple(placed)
    wishes = {name: rank for rank, name in reversed(list(enumerate(preferred)))}

    def cost(node: str) -> tuple[int, int, int, int]:
        same = sum(1 for each in others if each.node == node and each.owner == owner)
        load = sum(1 for each in others if each.node == node)
        return wishes.get(node, len(wishes)), same, load, nodes.index(node)

    candidates = [required] if required else list(nodes)
    if not candidates:
        raise ConfigError("the mesh has no node yet")
    return min(candidates, key=cost)
