"""The loop that moves bytes: epoll, timers and callbacks, one thread, no tasks.

Floor 2. Level-triggered epoll calls back whoever registered a descriptor; what the callbacks wrote
is flushed once at the end of each batch, which is when nothing more is ready. trio lives in the same
thread as the reactor's guest (``ambient.engine.host``); bytes never pass through it (architecture.md
says why, with figures).

Whose fault an exception is decides how far it reaches: one that leaves a callback registered with
``on_error`` ends that connection only; any other ends the loop.
"""

from __future__ import annotations

import heapq
import itertools
import math
import mmap
import os
import select
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ambient.engine.alarm import NANOSECONDS, Alarm
from ambient.engine.headroom import Headroom
from ambient.engine.netns import open_own_netns
from ambient.model.limits import Limits
from ambient.wire.hbone_budget import WindowBudget

if TYPE_CHECKING:
    from ambient.engine.revocations import Revocations

IN = select.EPOLLIN
OUT = select.EPOLLOUT
HANG_UP = select.EPOLLHUP | select.EPOLLERR

EventCallback: TypeAlias = Callable[[int], None]
Callback: TypeAlias = Callable[[], object]
ErrorCallback: TypeAlias = Callable[[Exception], None]

# One read fills at most this much. What costs is the wake-up and not the bytes: with 64 KiB a byte of a bulk
# transfer costs half as much again as with 256 KiB, and a tenth less with 1 MiB (measured).
READ_BYTES = 1024 * 1024
# One TLS record (RFC 8446 5.1), and an HTTP/2 frame header in front of it.
SLOT_BYTES = 16 * 1024
SLOT_HEADROOM = 9
# Records that one read fills where frames are that small.
SLOTS = 16
# Events per batch: bounds how long a flush waits behind other connections. Python allocates room for so many
# with every wait, and up to a KiB is found faster.
BATCH_EVENTS = 85
FLUSH_ROUNDS = 3
# Cancelled timers are swept out of the heap when they are this many and the majority.
SWEEP_TIMERS = 512
# How many failures of callbacks are kept for whoever looks into the process.
KEPT_FAILURES = 32


class Flushable(Protocol):
    """What ``Reactor.mark_dirty`` takes: something that gathers writes during a batch."""

    def flush(self) -> None:
        """Send what was gathered; called once after the batch."""
        ...

    def crashed(self, exc: Exception) -> None:
        """Told of an exception that left ``flush``: end this connection."""
        ...


class Registered(Protocol):
    """What ``Reactor.attach`` takes: somebody who waits for the events of one descriptor."""

    @property
    def on_event(self) -> EventCallback:
        """Called with the ready events."""
        ...

    @property
    def crashed(self) -> ErrorCallback | None:
        """Given an exception that left ``on_event``; None: it ends the loop."""
        ...


@dataclass(slots=True, eq=False)
class _Callbacks:
    on_event: EventCallback
    crashed: ErrorCallback | None


@dataclass(slots=True, eq=False)
class Timer:
    """One pending ``call_later``; ``cancel`` is idempotent and safe after it fired."""

    when: float
    callback: Callback | None
    on_error: ErrorCallback | None = None
    reactor: Reactor | None = field(default=None, repr=False)

    def cancel(self) -> None:
        """Never call back; drop the reference to the callback now."""
        if self.callback is not None:
            self.callback = self.on_error = None
            if self.reactor is not None:
                self.reactor._timer_cancelled()


@dataclass(frozen=True, slots=True)
class ReactorStatistics:
    """Counts since start."""

    descriptors: int
    timers: int
    batches: int
    callback_failures: int


class Reactor:
    """One per process; every method but ``call_soon_threadsafe`` belongs to the loop's thread.

    Attributes:
        read_buffer: ``READ_BYTES`` shared by all connections; what is in it lasts until the callback
            that read it returns.
        plain_buffer: The same for what TLS decrypts, with room for a record that an earlier read began.
        frame_buffer: The same for what is framed in place, with room for a frame header in front;
            ``frame_payload`` is it without that room, ``frame_slots`` are its TLS records, each less the
            room for its own frame header.
        alone: The running batch has one event: nobody else's writes could join those of its callback.
        room: So many more events the running batch asks for before it is flushed. Whoever moves many bytes
            says none: what is read later is read in larger pieces.
        limits: What is configured for the process's tunnels; set before the first of them.
        revocations: Whose certificates count no more; None: nobody keeps a list.
        windows: What all tunnels of the process may be made to hold beyond their first windows.
        headroom: What is left of descriptors and memory; without limits until somebody sets them.
        on_failure: Told of every exception that ended one connection; the daemon logs it.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Registered] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled = 0
        self._sequence = itertools.count()
        self._soon: deque[tuple[Callback, ErrorCallback | None]] = deque()
        self._dirty: list[Flushable] = []
        self._running = False
        self._batches = 0
        self._failures = 0
        self.read_buffer = _pages(READ_BYTES)
        self.plain_buffer = _pages(READ_BYTES + 2 * SLOT_BYTES)
        self.frame_buffer = _pages(READ_BYTES + SLOT_HEADROOM)
        self.frame_payload = self.frame_buffer[SLOT_HEADROOM:]
        self.frame_slots = [
            self.frame_buffer[start + SLOT_HEADROOM : start + SLOT_BYTES]
            for start in range(0, SLOTS * SLOT_BYTES, SLOT_BYTES)
        ]
        self.alone = False
        self.room = 0
        self.limits = Limits()
        self.revocations: Revocations | None = None
        self.windows = WindowBudget()
        self.headroom = Headroom()
        self.failures: deque[Exception] = deque(maxlen=KEPT_FAILURES)
        self.on_failure: Callable[[Exception], None] | None = None
        self._threadsafe: deque[Callback] = deque()
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.add(self._wake_fd, IN, self._woken)
        self._home: int | None = None
        self._alarm = Alarm()
        self._due = False  # A timer's time has come.
        self.add(self._alarm.fileno(), IN, self._alarmed)

    # Descriptors -----------------------------------------------------------------------------

    def add(
        self, fd: int, events: int, callback: EventCallback, on_error: ErrorCallback | None = None
    ) -> None:
        """Call *callback* with the ready events of *fd*, for as long as it stays added.

        Args:
            events: ``IN``, ``OUT`` or 0; errors and hang-ups are always reported.
            on_error: Given an exception that leaves *callback*; without it the exception ends the loop.
        """
        self.attach(fd, events, _Callbacks(callback, on_error))

    def attach(self, fd: int, events: int, registered: Registered) -> None:
        """``add`` for an object that has both callbacks as methods: cheaper where there are thousands."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = registered

    def modify(self, fd: int, events: int) -> None:
        """Ask for other events of an added descriptor."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget *fd*; call it before closing. Events of the running batch no longer reach it."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def closing(self, fd: int) -> None:
        """``remove`` for who closes *fd* next, and has no duplicate of it: epoll forgets it by that."""
        self._callbacks.pop(fd, None)

    def registered(self, fd: int) -> bool:
        """Whether somebody added *fd*."""
        return fd in self._callbacks

    def mark_dirty(self, flushable: Flushable) -> None:
        """Flush *flushable* at the end of this batch; the caller marks itself once."""
        self._dirty.append(flushable)

    # Time ------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds of the monotonic clock."""
        return monotonic()

    def call_later(self, seconds: float, callback: Callback, on_error: ErrorCallback | None = None) -> Timer:
        """Call *callback* once, *seconds* from now, unless the timer is cancelled first."""
        timer = Timer(self.now() + seconds, callback, on_error, self)
        heapq.heappush(self._timers, (timer.when, next(self._sequence), timer))
        if seconds <= 0:
            self._due = True
        elif self._timers[0][2] is timer:
            self._set_alarm()
        return timer

    def call_soon(self, callback: Callback, on_error: ErrorCallback | None = None) -> None:
        """Call *callback* before the loop waits again, after what is running now."""
        self._soon.append((callback, on_error))

    def call_soon_threadsafe(self, callback: Callback) -> None:
        """``call_soon`` from any thread."""
        self._threadsafe.append(callback)
        os.eventfd_write(self._wake_fd, 1)

    # The loop --------------------------------------------------------------------------------

    def run(self) -> None:
        """Run until ``stop``; an exception that nobody took responsibility for leaves here."""
        self._running = True
        while self._running:
            self.run_once()

    def run_once(self, timeout: float | None = None) -> None:
        """Wait for events (at most *timeout* seconds, None: until something is due) and serve them."""
        callbacks = self._callbacks
        if self._soon or self._dirty or self._due:
            timeout = 0.0
        ready = self._epoll.poll(timeout, BATCH_EVENTS)
        alone = self.alone = len(ready) == 1
        self.room = 0 if alone else BATCH_EVENTS - len(ready)
        while ready:
            for fd, events in ready:
                entry = callbacks.get(fd)
                if entry is None:
                    continue
                try:
                    entry.on_event(events)
                except Exception as exc:
                    self._failed(exc, entry.crashed)
            if self.room <= 0:
                break
            # Where there were several more have come by now: what is written for them leaves with the rest.
            ready = self._epoll.poll(0, self.room)
            self.room -= len(ready)
        self._batches += 1
        if self._due:
            self._fire_timers()
        if self._soon:
            self._run_soon()
        if self._dirty:
            self._flush()

    def stop(self) -> None:
        """Let ``run`` return after the current batch."""
        self._running = False

    def close(self) -> None:
        """Release the loop's own descriptors; whatever is still added is its owner's to close."""
        self._callbacks.clear()
        self._epoll.close()
        os.close(self._wake_fd)
        self._alarm.close()
        if self._home is not None:
            os.close(self._home)

    def home(self) -> int:
        """The network namespace in which the loop's thread lives, for whoever leaves it for a moment."""
        if self._home is None:
            self._home = open_own_netns()
        return self._home

    def statistics(self) -> ReactorStatistics:
        """What the loop carries now and has done so far."""
        return ReactorStatistics(
            len(self._callbacks) - 2, len(self._timers) - self._cancelled, self._batches, self._failures
        )

    def record_failure(self, exc: Exception) -> None:
        """Note an exception that ended one connection or one stream."""
        self._failures += 1
        self.failures.append(exc)
        if self.on_failure is not None:
            self.on_failure(exc)

    def _failed(self, exc: Exception, on_error: ErrorCallback | None) -> None:
        if on_error is None:
            raise exc
        self.record_failure(exc)
        try:
            on_error(exc)
        except Exception as second:
            # The connection could not even be closed properly: its neighbours still live.
            self.record_failure(second)

    def _alarmed(self, events: int) -> None:
        self._alarm.clear()
        self._due = True

    def _fire_timers(self) -> None:
        now = self.now()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            callback, on_error = timer.callback, timer.on_error
            if callback is None:
                self._cancelled -= 1
                continue
            timer.callback = timer.on_error = timer.reactor = None
            try:
                callback()
            except Exception as exc:
                self._failed(exc, on_error)
        self._due = False
        if self._timers:
            self._set_alarm()

    def _set_alarm(self) -> None:
        # A timeout of epoll would be set and cleared with each wait: two writes to the timer hardware.
        self._alarm.set_at(math.ceil(self._timers[0][0] * NANOSECONDS))

    def _run_soon(self) -> None:
        # Only what is there now: a callback that asks for itself again must not starve the descriptors.
        for _ in range(len(self._soon)):
            callback, on_error = self._soon.popleft()
            try:
                callback()
            except Exception as exc:
                self._failed(exc, on_error)

    def _flush(self) -> None:
        # A tunnel's flush makes its TLS channel dirty; more rounds are left to the next batch.
        for _ in range(FLUSH_ROUNDS):
            dirty, self._dirty = self._dirty, []
            for flushable in dirty:
                try:
                    flushable.flush()
                except Exception as exc:
                    self._failed(exc, flushable.crashed)
            if not self._dirty:
                break

    def _woken(self, events: int) -> None:
        os.eventfd_read(self._wake_fd)
        for _ in range(len(self._threadsafe)):
            self._threadsafe.popleft()()

    def _timer_cancelled(self) -> None:
        self._cancelled += 1
        if self._cancelled > SWEEP_TIMERS and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0


def _pages(size: int) -> memoryview:
    """Memory that counts for nothing until it is written to."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
