"""What a daemon does when descriptors or memory run short: say so once a second, and measure its memory.

Floor 2. Refusing itself is ``ambient.engine.headroom``'s and the inbound stream's.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import trio

from ambient.engine.headroom import Headroom
from ambient.engine.reactor import Reactor

# Between two lines about refused work.
LINE_SECONDS = 1.0
# Between two looks at our memory: 5 us each.
LOOK_SECONDS = 0.25
# Under pressure, what was freed is given back to the machine that often; it walks the heap.
TRIM_SECONDS = 1.0

OVERLOADED = "overloaded: no memory for new work"


class RefusalLog:
    """One line a second at the most, with the number of what it stands for.

    Args:
        say: Takes one line.
    """

    def __init__(self, reactor: Reactor, say: Callable[[str], None]) -> None:
        self._reactor = reactor
        self._say = say
        self._next = 0.0
        self._unsaid = 0

    def refused(self, reason: str) -> None:
        """Note a refusal for want of *reason*."""
        self._unsaid += 1
        now = self._reactor.now()
        if now >= self._next:
            self._next = now + LINE_SECONDS
            self._say(f"short of {reason}: refused new work, {self._unsaid} times since the last line")
            self._unsaid = 0


async def watch_memory(headroom: Headroom, limit: int) -> None:
    """Keep ``headroom.memory`` true until cancelled; returns at once if there is no *limit* (bytes)."""
    if not limit:
        return
    page = os.sysconf("SC_PAGE_SIZE")
    statm = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
    trimmed = 0.0
    try:
        while True:
            resident = int(os.pread(statm, 128, 0).split()[1]) * page
            headroom.memory = resident / limit
            if headroom.tight and trio.current_time() >= trimmed + TRIM_SECONDS:
                trimmed = trio.current_time()
                ctypes.CDLL(None).malloc_trim(0)
            await trio.sleep(LOOK_SECONDS)
    finally:
        os.close(statm)
