"""Requests that are carried out side by side and answered in the order in which they came.

ZDS has no numbers: the oldest request is the one that an ack is for. A node's agent enrolls hundreds of pods
at once, and each of them waits for somebody else (control, a certificate, late knockers): so they wait
together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio


@dataclass(slots=True)
class Turn:
    """One request's place.

    Attributes:
        earlier: Set when every earlier request has been answered.
        same: Set when the one before it about the same workload has.
        answered: To be set when this one has.
    """

    earlier: trio.Event
    same: trio.Event
    answered: trio.Event = field(default_factory=trio.Event)


class InOrder:
    """Gives out turns."""

    def __init__(self) -> None:
        self._last = trio.Event()
        self._last.set()
        self._of: dict[str, trio.Event] = {}

    def turn(self, uid: str = "") -> Turn:
        """The next place; *uid* says about which workload, "" about none."""
        first = trio.Event()
        first.set()
        made = Turn(self._last, self._of.get(uid, first))
        self._last = made.answered
        if uid:
            self._of[uid] = made.answered
        return made

    def end(self, turn: Turn, uid: str = "") -> None:
        """It has been answered, or never will be."""
        turn.answered.set()
        if self._of.get(uid) is turn.answered:
            del self._of[uid]
