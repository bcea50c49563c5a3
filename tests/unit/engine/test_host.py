"""trio as a guest: results, exceptions, and that every ``finally`` runs."""

from __future__ import annotations

import pytest
import trio

from ambient.engine import host
from ambient.engine.reactor import Reactor


def test_the_result_of_main_is_the_result() -> None:
    """The daemon's exit code comes this way."""

    async def main(reactor: Reactor) -> int:
        await trio.sleep(0.001)
        return 7

    assert host.run(main) == 7


def test_an_exception_of_main_leaves_as_it_is() -> None:
    """No wrapping: the top of the process decides by class."""

    async def main(reactor: Reactor) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        host.run(main)


def test_an_exception_of_the_loop_unwinds_trio_first() -> None:
    """The trap: without this, no ``finally`` of any task would run."""
    unwound: list[str] = []

    async def main(reactor: Reactor) -> None:
        reactor.call_later(0.001, lambda: 1 // 0)
        try:
            await trio.sleep(60)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.001)
            unwound.append("finally")

    with pytest.raises(ZeroDivisionError):
        host.run(main)
    assert unwound == ["finally"]


def test_both_loops_take_turns() -> None:
    """Reactor callbacks and trio tasks see each other's effects."""

    async def main(reactor: Reactor) -> list[int]:
        seen: list[int] = []
        event = trio.Event()
        reactor.call_later(0.002, lambda: (seen.append(1), event.set()))
        await event.wait()
        seen.append(2)
        return seen

    given = Reactor()
    assert host.run(main, reactor=given) == [1, 2]
    given.close()
