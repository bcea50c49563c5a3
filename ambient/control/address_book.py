"""Who has which address: pods by node, services for good.

Floor 3, no I/O. A freed pod address is the last to be given out again, and a service keeps its virtual
address as long as the mesh lives: neither a pooled connection nor a resolver's cache meets a stranger.
"""

from __future__ import annotations

from collections.abc import Iterable

from ambient.model.addressing import (
    FIRST_POD_INDEX,
    FIRST_SERVICE_INDEX,
    LAST_POD_INDEX,
    LAST_SERVICE_INDEX,
    NETNS,
    AddressPlan,
    lowest_free,
)

PODS_PER_NODE = LAST_POD_INDEX - FIRST_POD_INDEX + 1


class AddressBook:
    """Hands out addresses of one plan; nodes are numbered from 1 in the order of *nodes*."""

    def __init__(self, plan: AddressPlan = NETNS, nodes: Iterable[str] = ()) -> None:
        self.plan = plan
        self._numbers = {name: number for number, name in enumerate(nodes, 1)}
        self._pods: dict[str, set[int]] = {name: set() for name in self._numbers}
        self._next = dict.fromkeys(self._numbers, FIRST_POD_INDEX)
        self._indexes: dict[tuple[str, ...], tuple[str, int]] = {}
        self._services: dict[tuple[str, str], int] = {}

    def of_node(self, node: str) -> tuple[str, ...]:
        """The node's own addresses, towards the other nodes."""
        return self.plan.node(self._numbers[node]).uplink

    @property
    def capacity(self) -> int:
        """How many pods fit."""
        return len(self._numbers) * PODS_PER_NODE

    def has_room(self, node: str) -> bool:
        """Whether another pod fits on *node*."""
        return len(self._pods[node]) < PODS_PER_NODE

    def new_pod(self, node: str) -> tuple[str, ...]:
        """Addresses for another pod on *node*.

        Raises:
            ConfigError: the node is full.
        """
        taken, start = self._pods[node], self._next[node]
        if all(index in taken for index in range(start, LAST_POD_INDEX + 1)):
            start = FIRST_POD_INDEX
        index = lowest_free(taken, start, LAST_POD_INDEX)
        taken.add(index)
        self._next[node] = index + 1 if index < LAST_POD_INDEX else FIRST_POD_INDEX
        addresses = self.plan.pod(self._numbers[node], index)
        self._indexes[addresses] = (node, index)
        return addresses

    def free_pod(self, addresses: tuple[str, ...]) -> None:
        """Take back what ``new_pod`` gave; other addresses (a node's) are not ours to take."""
        if addresses in self._indexes:
            node, index = self._indexes.pop(addresses)
            self._pods[node].discard(index)

    def of_service(self, namespace: str, name: str) -> tuple[str, ...]:
        """The virtual addresses of a service, the same ones each time."""
        key = (namespace, name)
        if key not in self._services:
            taken = set(self._services.values())
            self._services[key] = lowest_free(taken, FIRST_SERVICE_INDEX, LAST_SERVICE_INDEX)
        return self.plan.service(self._services[key])
