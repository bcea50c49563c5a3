"""Where a pod stands between "left alone" and "in the mesh", and what comes next. Pure.

Theory of operation
===================

The order is what makes enrollment lossless (ARCHITECTURE.md), so it is one table, here::

    OUT --wanted--> ENTERING --agent: enrolled--> IN --unwanted--> LEAVING --all acked--> RELEASING --> OUT
                       |                          ^                   |                      |
                       +--agent: failed--> FAILED +------wanted-------+   ENTERING <--wanted--+
                                                  IN --agent: lost--> LOST --agent: enrolled--> IN

* ENTERING: the node's agent was told to capture; nobody else knows yet.
* IN: captured and advertised as HBONE.
* LOST: the agent found it not captured any more and could not mend that: not advertised; the agent goes
  on trying, so it is told to hold it.
* LEAVING: no longer advertised, still captured, until every daemon has applied the update that says so:
  a peer that has not heard would still dial port 15008.
* RELEASING: the agent was told to let go; connections that were proxied drain on their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from ambient.wire.xds import PodReport


class Phase(Enum):
    """See the picture above."""

    OUT = "none"
    ENTERING = "enrolling"
    IN = "enrolled"
    LOST = "lost"
    LEAVING = "leaving"
    RELEASING = "draining"
    FAILED = "failed"


# Phase and whether it is wanted: where ``step`` moves nothing, whatever else is true. Nearly every pod nearly
# always.
UNMOVED = frozenset(
    {
        (Phase.OUT, False),
        (Phase.ENTERING, True),
        (Phase.IN, True),
        (Phase.LOST, True),
        (Phase.RELEASING, False),
        (Phase.FAILED, True),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """One pod's place in the picture.

    Attributes:
        version: In LEAVING, the registry version that stopped advertising it; 0 until that is published.
        kept: Connections older than the capture that live on in plaintext; -1 if the agent did not count.
        reset: Those that were reset when it was enrolled.
        existing: Both, in words, as far as they are shown.
        repairs: How often its agent had to put right what captures it.
        draining: Let go, but connections that were proxied still live.
    """

    phase: Phase = Phase.OUT
    version: int = 0
    reason: str = ""
    kept: int = -1
    reset: int = 0
    existing: tuple[str, ...] = ()
    repairs: int = 0
    duration_ms: float = 0.0
    draining: bool = False

    @property
    def advertised(self) -> bool:
        """Whether peers are told to speak HBONE to it."""
        return self.phase is Phase.IN

    @property
    def captured(self) -> bool:
        """Whether its agent is told to hold it captured."""
        return self.phase in (Phase.ENTERING, Phase.IN, Phase.LOST, Phase.LEAVING)

    @property
    def resting(self) -> bool:
        """Whether it waits for nobody."""
        return self.phase in (Phase.OUT, Phase.IN, Phase.LOST, Phase.FAILED)


def step(capture: Capture, *, wanted: bool, runnable: bool, applied: Callable[[int], bool]) -> Capture:
    """Return where *capture* moves now.

    Args:
        wanted: Whether the labels ask for ambient mode.
        runnable: Whether the pod has a network namespace to capture.
        applied: Whether every daemon has applied a registry version.
    """
    match capture.phase, wanted:
        case Phase.OUT, True if runnable:
            return Capture(phase=Phase.ENTERING, draining=capture.draining)
        case Phase.ENTERING, False:
            return replace(capture, phase=Phase.RELEASING)
        case Phase.IN | Phase.LOST, False:
            return replace(capture, phase=Phase.LEAVING, version=0)
        case Phase.LEAVING, True:
            return replace(capture, phase=Phase.IN, version=0)
        case Phase.LEAVING, False if capture.version and applied(capture.version):
            return replace(capture, phase=Phase.RELEASING, version=0)
        case Phase.RELEASING, True:
            return Capture(phase=Phase.ENTERING)
        case Phase.FAILED, False:
            return Capture()
        case _:
            return capture


def published(capture: Capture, version: int) -> Capture:
    """Note that the registry without it went out as *version*."""
    if capture.phase is Phase.LEAVING and not capture.version:
        return replace(capture, version=version)
    return capture


def reported(capture: Capture, report: PodReport) -> Capture:
    """Return where the agent's word moves *capture*; a word that comes too late changes nothing."""
    match capture.phase, report.state:
        case Phase.ENTERING | Phase.LOST, "enrolled":
            return _enrolled(report)
        case Phase.IN, "enrolled":
            return replace(_enrolled(report), kept=_newer(capture.kept, report.established_kept))
        case Phase.IN | Phase.LOST | Phase.ENTERING, "lost":
            return replace(capture, phase=Phase.LOST, reason=report.reason, repairs=report.repairs)
        case Phase.ENTERING, "failed":
            return Capture(phase=Phase.FAILED, reason=report.reason, duration_ms=report.duration_ms)
        case Phase.IN, "failed":
            return Capture(phase=Phase.FAILED, reason=report.reason)
        case Phase.RELEASING, "draining" | "none":
            return Capture(
                draining=report.state == "draining",
                kept=report.established_kept,
                duration_ms=report.duration_ms,
            )
        case Phase.RELEASING, "failed":
            return Capture(phase=Phase.FAILED, reason=report.reason)
        case Phase.OUT, "none":
            return replace(capture, draining=False)
        case _:
            return capture


def _enrolled(report: PodReport) -> Capture:
    return Capture(
        phase=Phase.IN,
        kept=report.established_kept,
        reset=report.established_reset,
        existing=report.existing,
        repairs=report.repairs,
        duration_ms=report.duration_ms,
    )


def _newer(before: int, now: int) -> int:
    """A count that was not counted again stays what it was."""
    return before if now < 0 else now
