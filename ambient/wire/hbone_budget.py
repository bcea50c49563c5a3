"""Budgets: how much of each cheap trick a peer may play before the connection ends.

Floor 1: time is an argument. Figures: reference/threats.md's table of HTTP/2 floods, Envoy's defaults
where it has one.
"""

from __future__ import annotations

from dataclasses import dataclass

# PING and SETTINGS each cost us an answer.
PINGS_PER_SECOND = 20
SETTINGS_PER_SECOND = 20
# Each may change the window of every stream: 2,730 fit a frame, and took 53 ms on 200 streams (measured).
# nghttp2 draws the line here too; there are nine registered settings.
SETTINGS_PER_FRAME = 32
# Envoy's max_inbound_priority_frames_per_stream.
PRIORITY_BASE = 100
PRIORITY_PER_STREAM = 100
# Envoy's max_consecutive_inbound_frames_with_empty_payload.
CONSECUTIVE_EMPTY_DATA = 1
# Envoy allows 5 + 2 * (streams + 10 * DATA frames sent); streams weigh more here, as ours live long.
UPDATES_BASE = 100
UPDATES_PER_STREAM = 20
UPDATES_PER_DATA_SENT = 20
# ... and our frames are large: a peer may well give back what it reads in small pieces.
BYTES_SENT_PER_UPDATE = 1024
# Frames of types we do not know (RFC 9113 5.5 has us ignore them), and closed-stream leftovers.
IGNORED_PER_SECOND = 100
LEFTOVERS_PER_STREAM = 4
# Streams reset before they were answered, by the peer (rapid reset, CVE-2023-44487) or by us for
# its faults (CVE-2025-8671): this many in the window, or more than half of all once there were enough.
PREMATURE_RESETS = 100
PREMATURE_WINDOW_SECONDS = 30.0
PREMATURE_JUDGED_FROM_STREAMS = 200


class Rate:
    """A token bucket: *limit* at once, refilled over *seconds*."""

    __slots__ = ("_last", "_limit", "_per_second", "_tokens")

    def __init__(self, limit: int, seconds: float = 1.0) -> None:
        self._limit = float(limit)
        self._per_second = limit / seconds
        self._tokens = self._limit
        self._last = 0.0

    def spend(self, now: float) -> bool:
        """Take one; False if there is none left."""
        self._tokens = min(self._limit, self._tokens + max(0.0, now - self._last) * self._per_second)
        self._last = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(slots=True)
class ResetBudget:
    """Premature ends of streams, in a window and as a share of all."""

    rate: Rate
    streams: int = 0
    premature: int = 0

    @classmethod
    def fresh(cls) -> ResetBudget:
        """A full one."""
        return cls(Rate(PREMATURE_RESETS, PREMATURE_WINDOW_SECONDS))

    def spend(self, now: float) -> bool:
        """Count one premature end; False if the peer has had enough of them."""
        self.premature += 1
        if self.streams >= PREMATURE_JUDGED_FROM_STREAMS and self.premature * 2 > self.streams:
            return False
        return self.rate.spend(now)


# Windows granted to all streams of a process: what stalled readers can make us hold. The first 64 KiB of
# a stream are granted always (but count), so that every stream gets on. 128 MiB is 32 streams at full width.
WINDOW_BUDGET_BYTES = 128 * 1024 * 1024


class WindowBudget:
    """The sum of all windows of a process; one is shared by its connections."""

    __slots__ = ("left",)

    def __init__(self, total: int = WINDOW_BUDGET_BYTES) -> None:
        self.left = total

    def take(self, amount: int) -> bool:
        """Reserve *amount* bytes, or nothing."""
        if amount > self.left:
            return False
        self.left -= amount
        return True

    def charge(self, amount: int) -> None:
        """Reserve what cannot be refused; until enough was given back, nobody may take more."""
        self.left -= amount

    def give(self, amount: int) -> None:
        """Return what a closed stream had."""
        self.left += amount
