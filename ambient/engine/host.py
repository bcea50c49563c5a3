"""trio as the reactor's guest: one thread, two loops, one of them in charge.

Floor 2. The reactor owns the thread and the bytes; trio's tasks (control plane, certificates, ZDS,
admin, drain) run inside it through ``trio.lowlevel.start_guest_run``.

The trap this module exists for: an exception that leaves the reactor would abandon trio without
running a single ``finally``. So it is caught here, trio's main task is cancelled, the loop goes on
until that task has ended, and only then is the exception raised again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import outcome
import trio

from ambient.engine.reactor import Reactor

T = TypeVar("T")

# How many further exceptions the loop may throw while trio unwinds before we give up on it.
MAX_UNWIND_FAILURES = 1000


def run(main: Callable[[Reactor], Awaitable[T]], *, reactor: Reactor | None = None) -> T:
    """Run ``await main(reactor)`` with trio as the guest of the reactor.

    Args:
        reactor: The loop to use; by default a new one, closed at the end.

    Returns:
        What *main* returns.

    Raises:
        BaseException: what *main* raises, or what the loop itself raised, after *main* was cancelled.
    """
    loop = reactor if reactor is not None else Reactor()
    hosting = _Hosting(loop)
    try:
        return hosting.run(main)
    finally:
        if reactor is None:
            loop.close()


class _Hosting:
    """One guest run."""

    def __init__(self, reactor: Reactor) -> None:
        self._reactor = reactor
        self._scope = trio.CancelScope()
        self._outcome: outcome.Outcome[object] | None = None

    def run(self, main: Callable[[Reactor], Awaitable[T]]) -> T:
        async def guarded() -> T | None:
            with self._scope:
                return await main(self._reactor)
            return None

        trio.lowlevel.start_guest_run(
            guarded,
            run_sync_soon_threadsafe=self._reactor.call_soon_threadsafe,
            run_sync_soon_not_threadsafe=self._reactor.call_soon,
            done_callback=self._done,
        )
        failure = self._loop()
        assert self._outcome is not None
        if failure is not None:
            raise failure
        return self._outcome.unwrap()  # type: ignore[return-value]

    def _loop(self) -> BaseException | None:
        failure: BaseException | None = None
        failures = 0
        while self._outcome is None:
            try:
                self._reactor.run()
            except BaseException as exc:
                failures += 1
                if failures > MAX_UNWIND_FAILURES:
                    raise
                failure = failure or exc
                self._scope.cancel()
        return failure

    def _done(self, result: outcome.Outcome[object]) -> None:
        self._outcome = result
        self._reactor.stop()
