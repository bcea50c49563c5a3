"""The loop: events, timers, and how far an exception reaches."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from ambient.engine import reactor as reactor_module
from ambient.engine.reactor import IN, OUT, Reactor


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def test_a_descriptor_calls_back_while_it_is_added(reactor: Reactor, pipe: tuple[int, int]) -> None:
    """Level-triggered: what is not read is reported again; what is removed is silent."""
    seen: list[int] = []
    os.write(pipe[1], b"x")
    reactor.add(pipe[0], IN, seen.append)
    assert reactor.registered(pipe[0])
    reactor.run_once(0)
    reactor.run_once(0)
    reactor.modify(pipe[0], 0)
    reactor.run_once(0)
    reactor.remove(pipe[0])
    reactor.remove(pipe[0])
    reactor.run_once(0)

    assert seen == [IN, IN]


def test_timers_fire_in_order_and_cancelled_ones_never(reactor: Reactor) -> None:
    """Deadlines are most of what a proxy waits for."""
    seen: list[str] = []
    reactor.call_later(0.02, lambda: seen.append("b"))
    reactor.call_later(0.01, lambda: seen.append("a"))
    cancelled = reactor.call_later(0.0, lambda: seen.append("never"))
    cancelled.cancel()
    cancelled.cancel()
    while len(seen) < 2:
        reactor.run_once()

    assert seen == ["a", "b"]
    assert reactor.statistics().timers == 0


def test_a_broken_timer_does_not_stop_the_others(reactor: Reactor) -> None:
    """An exception that ends the loop is survived by who hosts it, and then the deadlines still hold."""
    seen: list[str] = []
    reactor.call_later(0.01, lambda: 1 // 0)
    reactor.call_later(0.02, lambda: seen.append("a"))
    reactor.call_later(0.03, lambda: reactor.call_later(0, lambda: seen.append("b")))
    with pytest.raises(ZeroDivisionError):
        reactor.run()
    while len(seen) < 2:
        reactor.run_once()

    assert seen == ["a", "b"]


def test_cancelled_timers_do_not_pile_up(reactor: Reactor) -> None:
    """Ten-second deadlines of a thousand connections a second are ten thousand dead entries."""
    for _ in range(5 * reactor_module.SWEEP_TIMERS):
        reactor.call_later(60, lambda: None).cancel()

    assert len(reactor._timers) <= reactor_module.SWEEP_TIMERS + 1


def test_soon_means_after_what_runs_and_before_waiting(reactor: Reactor) -> None:
    """A callback that asks for itself again must not starve the others."""
    seen: list[int] = []

    def again() -> None:
        seen.append(len(seen))
        reactor.call_soon(again)

    reactor.call_soon(again)
    reactor.run_once()
    assert seen == [0]
    reactor.run_once()
    assert seen == [0, 1]


def test_another_thread_wakes_the_loop(reactor: Reactor) -> None:
    """trio's own thread reports this way."""
    thread = threading.Thread(target=lambda: reactor.call_soon_threadsafe(reactor.stop))
    thread.start()
    reactor.run()
    thread.join()


def test_the_fault_of_one_connection_stays_with_it(reactor: Reactor, pipe: tuple[int, int]) -> None:
    """With an owner named, the owner is told and the loop goes on; even if the owner fails too."""
    told: list[Exception] = []
    reactor.on_failure = told.append

    def broken(events: int) -> None:
        raise ZeroDivisionError

    def worse(exc: Exception) -> None:
        told.append(exc)
        raise KeyError

    reactor.add(pipe[1], OUT, broken, worse)
    reactor.run_once(0)
    reactor.remove(pipe[1])
    reactor.call_soon(lambda: 1 // 0, told.append)
    reactor.call_later(0, lambda: 1 // 0, told.append)
    reactor.run_once(0)

    assert [type(exc) for exc in reactor.failures] == [
        ZeroDivisionError,
        KeyError,
        ZeroDivisionError,
        ZeroDivisionError,
    ]
    assert reactor.statistics().callback_failures == 4
    assert len(told) == 7


@pytest.mark.parametrize("how", ["event", "soon", "timer"])
def test_the_fault_of_nobody_ends_the_loop(reactor: Reactor, pipe: tuple[int, int], how: str) -> None:
    """A bug of the loop's own callbacks must not be overlooked."""

    def broken(*events: int) -> None:
        raise ZeroDivisionError

    match how:
        case "event":
            reactor.add(pipe[1], OUT, broken)
        case "soon":
            reactor.call_soon(broken)
        case "timer":
            reactor.call_later(0, broken)

    with pytest.raises(ZeroDivisionError):
        reactor.run()


class Dirty:
    """Writes at the end of the batch."""

    def __init__(self, reactor: Reactor, rounds: int = 0, *, broken: bool = False) -> None:
        self.reactor, self.rounds, self.broken = reactor, rounds, broken
        self.flushed = 0
        self.crash: Exception | None = None

    def flush(self) -> None:
        self.flushed += 1
        if self.broken:
            raise ZeroDivisionError
        if self.flushed < self.rounds:
            self.reactor.mark_dirty(self)

    def crashed(self, exc: Exception) -> None:
        self.crash = exc


def test_flushes_come_once_a_batch(reactor: Reactor) -> None:
    """A flush that makes another dirty is served too, but not forever."""
    few, many, broken = Dirty(reactor, 2), Dirty(reactor, 99), Dirty(reactor, broken=True)
    for each in (few, many, broken):
        reactor.mark_dirty(each)
    reactor.run_once()

    assert (few.flushed, many.flushed) == (2, reactor_module.FLUSH_ROUNDS)
    assert isinstance(broken.crash, ZeroDivisionError)


def _forward(on_event: Callable[[int, int], object], read: int, write: int, events: int) -> None:
    on_event(read, write)


@contextmanager
def ready_pipes(reactor: Reactor, count: int, on_event: Callable[[int, int], object]) -> Iterator[None]:
    """*count* pipes with a byte in each; *on_event* gets the end that is ready and the end that filled it."""
    ends = [os.pipe() for _ in range(count)]
    for read, write in ends:
        os.write(write, b"x")
        reactor.add(read, IN, partial(_forward, on_event, read, write))
    try:
        yield
    finally:
        for read, write in ends:
            reactor.remove(read)
            os.close(read)
            os.close(write)


@pytest.mark.parametrize(("count", "together"), [(2, 4), (1, 1)])
def test_what_comes_while_several_are_served_is_flushed_with_them(
    reactor: Reactor, count: int, together: int
) -> None:
    """Every descriptor is ready once more after its first event; who is alone is not kept waiting for it."""
    dirty = Dirty(reactor)
    served: list[int] = []

    def on_event(read: int, write: int) -> None:
        os.read(read, 1)
        if read not in served:
            os.write(write, b"x")
        if not served:
            reactor.mark_dirty(dirty)
        served.append(read)

    with ready_pipes(reactor, count, on_event):
        reactor.run_once()
        assert (len(served), dirty.flushed) == (together, 1)


def test_who_moves_many_bytes_ends_the_batch(reactor: Reactor) -> None:
    """What they would read at once is little: it is more after the flush."""
    served: list[int] = []

    def on_event(read: int, write: int) -> None:
        served.append(read)
        reactor.room = 0

    with ready_pipes(reactor, 2, on_event):
        reactor.run_once()

    assert len(served) == 2


def test_those_who_are_always_ready_do_not_keep_a_batch_from_its_end(reactor: Reactor) -> None:
    """A batch has so many events and no more, wherever they come from."""
    served: list[int] = []

    with ready_pipes(reactor, 3, lambda read, write: served.append(read)):
        reactor.run_once()

    assert len(served) == reactor_module.BATCH_EVENTS
