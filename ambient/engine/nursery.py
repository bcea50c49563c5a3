"""A nursery for background work of a block: what the block raises leaves as it is.

Floor 2. trio wraps every exception that leaves a nursery into a group, so that none is lost; where the
nursery is only the means of a context manager, its user should see ``Unavailable``, not a group of one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def plain_nursery() -> AsyncIterator[trio.Nursery]:
    """``trio.open_nursery`` whose groups of one are unwrapped; real groups stay groups."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        exc: BaseException = group
        while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
            exc = exc.exceptions[0]
        if exc is group:
            raise
        raise exc from exc.__cause__
