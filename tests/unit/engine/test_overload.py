"""What is said of refused work, and how ztunnel knows its own memory."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ambient.engine.headroom import Headroom
from ambient.engine.overload import RefusalLog, watch_memory
from ambient.engine.reactor import Reactor


def test_a_flood_of_refusals_is_one_line_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that fills the disk would be the next thing to run short."""
    reactor, now = Reactor(), [100.0]
    monkeypatch.setattr(reactor, "now", lambda: now[0])
    lines: list[str] = []
    refusals = RefusalLog(reactor, lines.append)
    for _ in range(1000):
        refusals.refused("descriptors")
    now[0] += 1.0
    refusals.refused("descriptors")
    reactor.close()

    assert lines == [
        "short of descriptors: refused new work, 1 times since the last line",
        "short of descriptors: refused new work, 1000 times since the last line",
    ]


def test_memory_is_measured_and_relief_is_seen() -> None:
    """Against what the process really has; nobody need restart it."""

    async def main() -> None:
        headroom = Headroom()
        async with trio.open_nursery() as nursery:
            small = trio.CancelScope()

            async def watch(limit: int, scope: trio.CancelScope) -> None:
                with scope:
                    await watch_memory(headroom, limit)

            nursery.start_soon(watch, 1024 * 1024, small)
            await trio.sleep(1)
            assert headroom.full
            small.cancel()
            nursery.start_soon(watch, 1024**4, trio.CancelScope())
            await trio.sleep(1)
            assert 0 < headroom.memory < 0.5
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.001))


async def test_without_a_limit_nothing_is_measured() -> None:
    """And nothing is refused."""
    headroom = Headroom()
    await watch_memory(headroom, 0)
    assert headroom.memory == 0.0
