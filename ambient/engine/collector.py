"""When Python looks for reference cycles: rarely, and never at what start-up or a large update made.

Floor 2. A connection's objects are let go by reference counts alone; cycles are the exception, of bugs and
of libraries. But a batch of new connections makes more objects than the collector's default threshold, so
it would run at every batch: measured, a third of the CPU time of a new tunnel.
"""

from __future__ import annotations

import gc

# Containers more than at the last collection: a batch of 256 new tunnels makes half as many. Measured:
# above 10,000 nothing changes any more for 64 at a time. The older generations: picked.
THRESHOLDS = (25_000, 10, 10)


def settle() -> None:
    """Call once, when start-up is over: what there is stays and need not be looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)


def look_at_the_young() -> None:
    """Call now and then while a large update is made: a short look instead of a long one later."""
    gc.collect(0)


def keep() -> None:
    """Call after a large update: what there is stays, as at the end of start-up.

    It takes no time, for only the young are looked at. A cycle that became garbage at an older age is never
    found again: such a cycle is a bug, and this loses no more than it had made since the last collection.
    """
    gc.collect(0)
    gc.freeze()
