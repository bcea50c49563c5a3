"""Long work on the thread that moves bytes: a little at a time, with a pause for traffic after each.

Floor 2. The work is an iterator whose steps take some 0.2 ms each; at any of them it may be left for a while.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import perf_counter

import trio

from ambient.engine.reactor import Reactor, Timer

# Steps go on for so many seconds, then traffic has the pause to itself.
SLICE_SECONDS = 0.0003
SLICE_PAUSE = 0.002


async def in_slices(steps: Iterable[None], reactor: Reactor | None = None) -> None:
    """Take all *steps*, giving way in between.

    Args:
        reactor: Whose traffic it is; its own timer ends a pause then. To wake a task of its guest costs
            0.2 ms of the thread and a switch to another, as much as the work.
    """
    if reactor is None:
        began = perf_counter()
        for _ in steps:
            if perf_counter() - began >= SLICE_SECONDS:
                await trio.sleep(SLICE_PAUSE)
                began = perf_counter()
    else:
        await _Turns(reactor, steps).taken()


class _Turns:
    """Steps that the reactor takes."""

    def __init__(self, reactor: Reactor, steps: Iterable[None]) -> None:
        self._reactor = reactor
        self._steps = iter(steps)
        self._timer: Timer | None = None
        self._ended = trio.Event()
        self._error: Exception | None = None

    async def taken(self) -> None:
        self._turn()
        try:
            await self._ended.wait()
        finally:
            if self._timer is not None:
                self._timer.cancel()
        if self._error is not None:
            raise self._error

    def _turn(self) -> None:
        self._timer = None
        began = perf_counter()
        try:
            for _ in self._steps:
                if perf_counter() - began >= SLICE_SECONDS:
                    self._timer = self._reactor.call_later(SLICE_PAUSE, self._turn)
                    return
        except Exception as exc:
            self._error = exc  # It is the task's, not the loop's.
        self._ended.set()
