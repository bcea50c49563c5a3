"""What all connections of one kind share: worked out for the first, remembered until the mesh changes.

A decision is a function of the mesh and of the facts, so asking again could only give the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from ambient.model.mesh import Mesh
from ambient.model.policy import Connection
from ambient.model.pool_plan import PoolKey
from ambient.model.record import Peer
from ambient.model.route import Admitted, Rejected
from ztunnel.metrics import Series, Traffic
from ztunnel.network import Address

# Kinds remembered for one pod, or for one tunnel; beyond it everything is forgotten. Picked, not measured.
MAX_REMEMBERED = 256
# A name that a peer chose is not kept if it is longer than any that means something (RFC 1035: 253).
MAX_NAME_BYTES = 300

K = TypeVar("K")
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """Answers that hold for as long as the mesh stays as it is."""

    __slots__ = ("_found", "_mesh", "_version")

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._version = mesh.version
        self._found: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """The answer, if it was given since the last change."""
        if self._version != self._mesh.version:
            self._version = self._mesh.version
            self._found.clear()
        return self._found.get(key)

    def keep(self, key: K, value: V) -> None:
        """Remember; call it with the version under which ``get`` found nothing."""
        if len(self._found) >= MAX_REMEMBERED:
            self._found.clear()
        self._found[key] = value


@dataclass(slots=True, eq=False)
class Flow:
    """Whose connections they are.

    Attributes:
        address: What the record calls the destination; the tunnel's, for HBONE.
        hbone_address: The target inside the tunnel, or "".
        pool_key: Outbound through a tunnel: which tunnels may carry them.
        series: Where they are counted, once the first was.
        source, destination: The record's ends, where they are the same for all connections.
        ends: What the record's line says of both, once one ended well; "" until then.
    """

    traffic: Traffic
    address: Address
    hbone_address: str = ""
    pool_key: PoolKey | None = None
    series: Series | None = None
    source: Peer | None = None
    destination: Peer | None = None
    ends: str = ""


@dataclass(slots=True, eq=False)
class Arrival:
    """What becomes of the CONNECTs to one target in one tunnel.

    Attributes:
        admission: Whether the target is ours.
        flow, facts: None unless it is.
        denial: Policy's reason against it, or "".
    """

    admission: Admitted | Rejected
    flow: Flow | None = None
    facts: Connection | None = None
    denial: str = ""
