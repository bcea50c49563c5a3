"""How many may stand at an HBONE door: those who have not said who they are, and those of one identity.

Floor 2, pure counting. ztunnel has such a door for each pod, a waypoint has one; what a peer may cost does
not depend on which of them it meets.
"""

from __future__ import annotations

from collections import Counter

from ambient.engine.reactor import Reactor
from ambient.errors import Unavailable
from ambient.model.identity import SpiffeId

# Connections that have not proven who they are (reference/threats.md 4).
MAX_HANDSHAKES = 1024
# Between the closing of the listeners and the GOAWAYs: requests that were on their way are still served.
# The control plane has told every source by then, so a few round trips are enough; picked, not measured.
GOAWAY_DELAY = 0.25


class Door:
    """Counts who came and has not left.

    Attributes:
        unknown: Connections whose handshake is under way.
        known: Tunnels by who is at their other end.
    """

    __slots__ = ("_reactor", "known", "unknown")

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self.unknown = 0
        self.known: Counter[SpiffeId] = Counter()

    def knock(self) -> None:
        """Somebody begins a handshake; ``shaken`` follows.

        Raises:
            Unavailable: too many do.
        """
        if self.unknown >= MAX_HANDSHAKES:
            raise Unavailable(f"over {MAX_HANDSHAKES} connections without an identity")
        self.unknown += 1

    def shaken(self) -> None:
        """The handshake is over, well or not."""
        self.unknown -= 1

    def enter(self, identity: SpiffeId) -> None:
        """A tunnel of *identity* begins; ``leave`` follows.

        Raises:
            Unavailable: it has too many.
        """
        most = self._reactor.limits.tunnels_per_identity
        if self.known[identity] >= most:
            raise Unavailable(f"over {most} connections of {identity}")
        self.known[identity] += 1

    def leave(self, identity: SpiffeId) -> None:
        """A tunnel of *identity* has ended."""
        self.known[identity] -= 1
        if not self.known[identity]:
            del self.known[identity]
