"""Waiting for what announces itself to nobody: a socket that appears, a port that answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

# Between two looks; picked, not measured.
LOOK_SECONDS = 0.02


async def until(condition: Callable[[], Awaitable[bool]], every: float = LOOK_SECONDS) -> None:
    """Return as soon as *condition* holds; deadlines are the caller's."""
    while True:
        if await condition():
            return
        await trio.sleep(every)
