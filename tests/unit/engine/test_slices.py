"""Long work in turns with traffic, by the guest's clock and by the reactor's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio
import trio.testing

from ambient.engine import host, slices
from ambient.engine.reactor import Reactor
from ambient.engine.slices import SLICE_PAUSE, in_slices


@pytest.fixture
def every_step_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "SLICE_SECONDS", 0.0)


def work(taken: list[int], steps: int) -> Iterator[None]:
    for number in range(steps):
        taken.append(number)
        yield


@pytest.mark.usefixtures("every_step_is_long")
def test_a_guest_without_a_reactor_pauses_after_each_slice() -> None:
    taken: list[int] = []

    async def main() -> None:
        await in_slices(work(taken, 5))
        assert trio.current_time() == pytest.approx(5 * SLICE_PAUSE)

    trio.run(main, clock=trio.testing.MockClock(rate=0, autojump_threshold=0))
    assert taken == list(range(5))


@pytest.mark.usefixtures("every_step_is_long")
def test_a_reactor_serves_others_between_two_slices() -> None:
    """Each pause is one turn of the loop at least, and the task goes on when all is done."""
    taken: list[int] = []
    seen: list[int] = []

    async def main(reactor: Reactor) -> None:
        def look() -> None:
            seen.append(len(taken))
            if len(taken) < 5:
                reactor.call_later(SLICE_PAUSE / 4, look)

        look()
        await in_slices(work(taken, 5), reactor)

    host.run(main)
    assert taken == list(range(5))
    assert set(seen) >= {1, 2, 3, 4}


@pytest.mark.usefixtures("every_step_is_long")
def test_what_a_step_raises_is_the_tasks() -> None:
    """Also from a later turn, which the reactor takes: the loop goes on."""

    def broken() -> Iterator[None]:
        yield
        raise ValueError("no such update")

    async def main(reactor: Reactor) -> None:
        with pytest.raises(ValueError, match="no such update"):
            await in_slices(broken(), reactor)
        assert reactor.statistics().callback_failures == 0

    host.run(main)


@pytest.mark.usefixtures("every_step_is_long")
def test_who_is_cancelled_takes_no_further_step() -> None:
    taken: list[int] = []

    async def main(reactor: Reactor) -> None:
        with trio.move_on_after(2 * SLICE_PAUSE):
            await in_slices(work(taken, 1_000_000), reactor)
        stopped = len(taken)
        assert stopped > 0
        await trio.sleep(3 * SLICE_PAUSE)
        assert len(taken) == stopped
        assert reactor.statistics().timers == 0

    host.run(main)
