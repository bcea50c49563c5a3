"""How much of the process's descriptors and memory is left for new work.

Floor 2. When little is left, new work is refused, so that what is open already, and whatever an operator
needs to look into the process, goes on. The kernel hands out the lowest free descriptor, so the number of a
new one says how many are in use at the least: nothing needs to be counted.

    in use     0 ........................ accepts_below ......... dials_below ........ limit
    accepts    yes                        reset, and the listener pauses
    dials      yes                        yes                    EMFILE, as if at the limit
    the rest   yes                        yes                    yes (control, admin, handover)
"""

from __future__ import annotations

import resource
from collections.abc import Callable

# Kept for what is open and for operators (reference/threats.md 4); a quarter where that would be most of all.
RESERVED_DESCRIPTORS = 64
# Shares of the memory limit: from the first on new work is refused, from the second on none is looked at.
TIGHT_SHARE, FULL_SHARE = 0.85, 0.95


class Headroom:
    """What the loop's listeners and dials ask before they take more.

    Attributes:
        accepts_below: An accepted connection whose descriptor is not below this is refused.
        dials_below: The same for an outgoing one.
        memory: The share of the memory limit that is in use; 0.0 where there is none.
        on_refused: Told the reason of every refusal.
    """

    __slots__ = ("accepts_below", "dials_below", "memory", "on_refused", "refusals")

    def __init__(self) -> None:
        self.accepts_below = self.dials_below = 1 << 30
        self.memory = 0.0
        self.refusals = 0
        self.on_refused: Callable[[str], None] | None = None

    def limit_descriptors(self, limit: int) -> None:
        """At most *limit* may be open, the present ones included."""
        reserve = min(RESERVED_DESCRIPTORS, limit // 4)
        self.accepts_below, self.dials_below = limit - reserve, limit - reserve // 2

    def limit_by_rlimit(self) -> None:
        """The same, as setrlimit(2) says."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY:
            self.limit_descriptors(soft)

    @property
    def tight(self) -> bool:
        """Whether memory is too short for new work."""
        return self.memory >= TIGHT_SHARE

    @property
    def full(self) -> bool:
        """Whether memory is too short even to refuse work one by one."""
        return self.memory >= FULL_SHARE

    def refuses(self, descriptor: int) -> bool:
        """Whether a connection that was accepted as *descriptor* is one too many; counts it then."""
        if descriptor < self.accepts_below and self.memory < TIGHT_SHARE:
            return False
        self.refused("memory" if self.tight else "descriptors")
        return True

    def refused(self, reason: str) -> None:
        """Something was refused for want of *reason*."""
        self.refusals += 1
        if self.on_refused is not None:
            self.on_refused(reason)


def raise_file_limit() -> None:
    """Use every descriptor we may: two for each connection, a dozen for each pod of a node."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
