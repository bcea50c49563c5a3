"""Which numbers may be compared: pure decisions over what was measured.

Floor 5. A mode that fails here is invalid and says why; a ratio that is too wide is unresolved. Nothing
here corrects a number: it stands, or it is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ambient.bench.statistics import Interval, percentile

# The numbers.
MAX_RPS_DEVIATION = 0.03
MIN_REQUESTS = 2000
MAX_HALF_WIDTH = 0.15
MAX_SIDECAR_TO_ENVOY = 1.5
# How late the generator may wake, 99 of 100 times. timerfd alone overshoots 45-150 us; on two cores
# shared with the mesh a wake-up waits for others' scheduler slices, 3 ms each on Linux. Later than a few of
# those and the client, not the mesh, is what would be measured.
MAX_SCHEDULE_LAG_US = 10_000

MTLS_MODES = frozenset({"sidecar", "ambient", "ambient+waypoint"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WireFacts:
    """What the capture between the nodes saw during one round of one mode.

    Attributes:
        captured_bytes: Sum of frame lengths, by the packet ring.
        link_bytes_low: The least the link counters say it must have been.
        link_bytes_high: The most.
    """

    markers: int
    plaintext: int
    packets: int
    dropped: int
    captured_bytes: int
    link_bytes_low: int
    link_bytes_high: int

    @property
    def agrees(self) -> bool:
        """Whether the ring and the link counters tell the same story."""
        return self.link_bytes_low <= self.captured_bytes <= self.link_bytes_high


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundFacts:
    """What one round of one mode has to show for itself.

    Attributes:
        wire: None if nothing was captured.
        stable: Whether the same proxy processes ran from the first to the last request.
    """

    sent: int
    ok: int
    failed: int
    offered_rps: float
    achieved_rps: float
    schedule_lags_us: Sequence[int]
    wire: WireFacts | None
    stable: bool = True


def achieved(rounds: Sequence[RoundFacts]) -> float:
    """Good answers as a share of what was offered, over all rounds: one hiccup is not a rate."""
    offered = sum(one.offered_rps for one in rounds)
    return sum(one.achieved_rps for one in rounds) / offered if offered else 0.0


def rps_holds(rounds: Sequence[RoundFacts]) -> bool:
    """Whether what was offered was achieved, within 3 %."""
    return abs(achieved(rounds) - 1) <= MAX_RPS_DEVIATION


def no_errors(rounds: Sequence[RoundFacts]) -> bool:
    """Whether every request was answered well."""
    return all(one.failed == 0 and one.ok == one.sent for one in rounds)


def schedule_lag(rounds: Sequence[RoundFacts]) -> float:
    """How late the generator woke, 99 of 100 times, in microseconds."""
    return percentile(sorted(lag for one in rounds for lag in one.schedule_lags_us), 0.99)


def client_kept_up(rounds: Sequence[RoundFacts]) -> bool:
    """Whether the generator, rather than the mesh, was never the bottleneck."""
    return schedule_lag(rounds) <= MAX_SCHEDULE_LAG_US


def wire_faults(mode: str, rounds: Sequence[RoundFacts]) -> list[str]:
    """Why the capture does not prove what *mode* claims; empty if it does."""
    seen = [one.wire for one in rounds if one.wire is not None]
    if len(seen) < len(rounds):
        return ["the wire between the nodes was not captured"]
    faults = []
    if any(one.dropped for one in seen):
        faults.append("the capture dropped packets")
    if not all(one.agrees for one in seen):
        faults.append("captured bytes disagree with the link counters")
    if any(one.packets == 0 for one in seen):
        faults.append("no packet crossed between the nodes")
    plain = any(one.markers or one.plaintext for one in seen)
    if mode in MTLS_MODES and plain:
        faults.append("plaintext on the wire between the nodes")
    if mode == "none" and not all(one.markers for one in seen):
        faults.append("mode none did not show the marker on the wire, so its absence proves nothing")
    return faults


def invalid_because(mode: str, rounds: Sequence[RoundFacts]) -> list[str]:
    """Every reason why this mode's numbers may not be compared; empty if they may."""
    reasons = []
    if not rounds:
        return ["no round was completed"]
    if not rps_holds(rounds):
        reasons.append(f"achieved {achieved(rounds):.1%} of the offered requests per second")
    if not no_errors(rounds):
        reasons.append(
            f"{sum(one.failed for one in rounds)} of {sum(one.sent for one in rounds)} requests failed"
        )
    if not client_kept_up(rounds):
        lag = f"{schedule_lag(rounds):.0f} us, limit {MAX_SCHEDULE_LAG_US} us"
        reasons.append(f"the client was saturated: schedule lag p99 {lag}")
    if not all(one.stable for one in rounds):
        reasons.append("a proxy started or ended while it was measured")
    return reasons + wire_faults(mode, rounds)


def unresolved_because(interval: Interval | None, requests: int, *, width: bool = True) -> str:
    """Why a ratio of two valid modes is not resolved; "" if it is.

    Args:
        requests: The smaller number of requests of the two modes.
        width: Whether the interval's width is judged: that of a cost is, that of a latency is only shown.
    """
    if interval is None:
        return "one side is zero"
    if None in interval.ci95:
        return "one round has no interval"
    if requests < MIN_REQUESTS:
        return f"{requests} requests per mode, {MIN_REQUESTS} are needed"
    if width and interval.relative_half_width > MAX_HALF_WIDTH:
        return f"half width {interval.relative_half_width:.0%}, limit {MAX_HALF_WIDTH:.0%}"
    return ""


def straw_sidecar(ours_to_envoy: float | None) -> str:
    """Why ratios against our sidecar would be a lie; "" if they are fair or Envoy was not there to ask."""
    if ours_to_envoy is not None and ours_to_envoy > MAX_SIDECAR_TO_ENVOY:
        return (
            f"our sidecar costs {ours_to_envoy:.2f}x Envoy's CPU per request, limit {MAX_SIDECAR_TO_ENVOY}x"
        )
    return ""
