"""Long work on the thread that moves bytes: a little at a time, with a pause for traffic after each.

Floor 2. The work is an iterator whose steps take some 0.2 ms each; at any of them it may be left for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

import trio

# Steps go on for so many seconds, then traffic has the pause to itself.
SLICE_SECONDS = 0.0003
SLICE_PAUSE = 0.002


async def in_slices(steps: Iterable[None]) -> None:
    """Take all *steps*, giving way in between."""
    began = perf_counter()
    for _ in steps:
        if perf_counter() - began >= SLICE_SECONDS:
            await trio.sleep(SLICE_PAUSE)
            began = perf_counter()
