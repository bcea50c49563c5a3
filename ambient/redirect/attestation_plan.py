"""What follows from a look at an enrolled pod: nothing, patience, a repair, or the admission that it is lost.

Pure. One table, first match wins; *now* and what the past was are arguments::

    namespace gone                 wait 2 s (its end is usually on its way to us), then give up
    namespace another one          leave the old one, enroll in the new one
    a port held by a stranger      give up: no repair takes a socket away from its process; unless a ztunnel
                                   serves, wait 5 s: an agent that has just come knows none yet, or only
                                   one that was replaced
    a port without listener        ask ztunnel to listen; one that has just come is given 30 s to open all of
                                   the node's; without one wait 5 s for it, then give up
    rules or routes other          put them back
    listeners held by us alone     a dead ztunnel's: whoever connects waits in the queue. Wait 10 s for the
                                   next ztunnel, then give up
    otherwise                      all is well

A repair that is needed again and again is a fight with somebody in the pod, and a pod that is captured
half of the time is not enrolled: after ``MAX_REPAIRS`` in ``REPAIRS_SECONDS`` we give up, and try again
later.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum, auto
from typing import TypeAlias

# How often every enrolled pod is looked at, events or not (reference/threats.md 4).
CHECK_SECONDS = 1.0
# A pod that ends is taken away by control within this; picked, not measured.
GONE_SECONDS = 2.0
# A ztunnel that crashed is back within a second; picked, not measured.
ZTUNNEL_SECONDS = 5.0
# While we hold its listeners, a connection waits as long as a patient client does; picked, not measured.
HELD_SECONDS = 10.0
# It opens the listeners of 250 pods one after the other, each with a certificate; picked, not measured.
ARRIVAL_SECONDS = 30.0
# Picked, not measured.
MAX_REPAIRS, REPAIRS_SECONDS = 10, 60.0
# From one attempt to have a lost pod enrolled again to the next, twice as long each time; picked.
FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS = 1.0, 30.0


class Namespace(Enum):
    """What the path of the pod's namespace leads to."""

    SAME = auto()
    OTHER = auto()
    GONE = auto()


class Listeners(Enum):
    """Who listens on the proxy's ports in it."""

    OURS = auto()
    HELD = auto()
    MISSING = auto()
    FOREIGN = auto()


class Rules(Enum):
    """Whether rules, routing rules and routes are what they should be."""

    STAND = auto()
    DIFFER = auto()


class Ztunnel(Enum):
    """Whether there is one that can be asked to listen."""

    THERE = auto()
    ARRIVING = auto()
    AWAY = auto()


class What(Enum):
    """What a repair puts right; the values are labels of a metric."""

    NAMESPACE = "namespace"
    LISTENERS = "listeners"
    RULES = "rules"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One look.

    Attributes:
        detail: Whoever holds a port, or which one nobody holds.
    """

    namespace: Namespace = Namespace.SAME
    listeners: Listeners = Listeners.OURS
    rules: Rules = Rules.STAND
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """What earlier looks leave behind.

    Attributes:
        wrong_since: When what is wrong now was first seen; None if nothing was.
        repaired: The times of the last repairs.
    """

    wrong_since: float | None = None
    repaired: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Fine:
    """The pod is what its report says."""


@dataclass(frozen=True, slots=True)
class Wait:
    """It is not, and may become so by itself."""


@dataclass(frozen=True, slots=True)
class Repair:
    """Put *what* right."""

    what: What
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """It is not enrolled, because."""

    reason: str


Verdict: TypeAlias = Fine | Wait | Repair | GiveUp


def decide(seen: Seen, past: Past, now: float, ztunnel: Ztunnel) -> tuple[Verdict, Past]:
    """Return what is to be done, and the past for the next look.

    Args:
        now: Seconds on any clock that only goes forward.
    """
    verdict = _verdict(seen, now - (now if past.wrong_since is None else past.wrong_since), ztunnel)
    recent = tuple(each for each in past.repaired if now - each < REPAIRS_SECONDS)
    match verdict:
        case Fine():
            return verdict, Past(repaired=recent)
        case Repair(what) if len(recent) >= MAX_REPAIRS:
            often = f"its {what.value} had to be repaired {len(recent)} times in {REPAIRS_SECONDS:g} s"
            return GiveUp(f"{often}: {verdict.reason}"), Past(repaired=recent)
        case Repair():
            return verdict, Past(repaired=(*recent, now))
        case _:
            since = now if past.wrong_since is None else past.wrong_since
            return verdict, replace(past, wrong_since=since, repaired=recent)


def _verdict(seen: Seen, wrong_for: float, ztunnel: Ztunnel) -> Verdict:
    if seen.namespace is Namespace.GONE:
        return GiveUp("its network namespace is gone") if wrong_for >= GONE_SECONDS else Wait()
    if seen.namespace is Namespace.OTHER:
        return Repair(What.NAMESPACE, "its network namespace was replaced")
    if seen.listeners is Listeners.FOREIGN:
        unknown = ztunnel is not Ztunnel.THERE and wrong_for < ZTUNNEL_SECONDS
        return Wait() if unknown else GiveUp(seen.detail)
    if seen.listeners is Listeners.MISSING:
        return _without_listener(seen.detail, wrong_for, ztunnel)
    if seen.rules is Rules.DIFFER:
        return Repair(What.RULES, "somebody changed its redirection rules")
    if seen.listeners is Listeners.HELD:
        return GiveUp(seen.detail) if wrong_for >= HELD_SECONDS else Wait()
    return Fine()


def _without_listener(detail: str, wrong_for: float, ztunnel: Ztunnel) -> Verdict:
    match ztunnel:
        case Ztunnel.THERE:
            return Repair(What.LISTENERS, detail)
        case Ztunnel.ARRIVING if wrong_for < ARRIVAL_SECONDS:
            return Wait()
        case Ztunnel.AWAY if wrong_for < ZTUNNEL_SECONDS:
            return Wait()
        case _:
            return GiveUp(f"{detail}, and no ztunnel serves this node")


def retry_delay(attempts: int) -> float:
    """Seconds from one attempt on a lost pod to the next, after so many in vain."""
    return min(LAST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(attempts, 10))
