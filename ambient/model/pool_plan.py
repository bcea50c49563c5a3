"""Which request uses which HBONE connection: the pool's decisions, without the pool.

Floor 0: pure; time is an argument, connections are numbers, requests are opaque.
"""

from __future__ import annotations

from dataclasses import dataclass

from ambient.model.identity import SpiffeId

# Istio's POOL_MAX_STREAMS_PER_CONNECTION and POOL_UNUSED_RELEASE_TIMEOUT (ztunnel.md 4).
MAX_STREAMS = 100
IDLE_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class PoolKey:
    """Requests with equal keys may share a connection.

    Attributes:
        source_uid: The pod on whose behalf, and from whose namespace, it is dialled.
        destination_uid: The destination workload (or waypoint); a restarted pod is another one.
        ip: Where the connection goes; *port* is 15008 but for tests.
        identities: Whom the peer's certificate may name.
    """

    source_uid: str
    source_identity: SpiffeId
    destination_uid: str
    ip: str
    port: int
    identities: frozenset[SpiffeId]
