"""A bell: tasks wait for "something changed" and look for themselves."""

from __future__ import annotations

from collections.abc import Callable

import trio


class Bell:
    """Wakes everybody who waits."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def ring(self) -> None:
        """Wake everybody who waits now."""
        self._event.set()
        self._event = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return as soon as *condition* holds; it is asked now and after every ring."""
        while not condition():
            await self._event.wait()

    def next(self) -> trio.Event:
        """The next ring: take it *before* looking, then wait for it, and none is missed in between."""
        return self._event
