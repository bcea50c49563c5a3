"""Continuous attestation: is every pod that we call enrolled still captured?

Every second, and at once when the kernel tells that rules or routes of a pod were touched, each enrolled
pod is looked at; ``attestation_plan`` decides, the pod's keeper acts. Asked is the kernel and nobody's
memory, so that a new agent knows as much as the old one.

What an unchanged pod costs: one stat, one question for the generation of its rules, one for its three
listeners; some 32 us together. 14 more where its lookups are captured, for whoever answers them; 180 more
where its rules are those of the legacy iptables, which have no generation and are read.
"""

from __future__ import annotations

import itertools
import logging
import select
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import trio

from ambient.engine.netns import netns_identity
from ambient.engine.netns_watch import DoorHolders, Holders, Look, NetnsWatch
from ambient.redirect import attestation_plan, evidence
from ambient.redirect.attestation_plan import (
    CHECK_SECONDS,
    Fine,
    GiveUp,
    Listeners,
    Namespace,
    Past,
    Repair,
    Rules,
    Seen,
    Verdict,
    Wait,
    decide,
    retry_delay,
)
from ambient.redirect.plan import DNS_CAPTURE_PORT, Capture
from ambient.redirect.pod_capture import Existing
from ambient.redirect.sockets import PROXY_PORTS, owner

log = logging.getLogger("agent")

_Found = TypeVar("_Found", Holders, DoorHolders)

# After news, so long nothing is looked at: whoever changes rules all the time costs us 20 looks a second.
PAUSE_SECONDS = 0.05
# Looked without a break for so long, then others may run: a look takes 40 us, the first at a pod 2 ms.
LOOKING_SECONDS = 0.002
# A round is spread over its second, so that no enrollment waits for all of it: pods that are looked at
# together, and how many parts there are at the most, for each is a wake-up. Picked.
TOGETHER, MOST_PARTS = 10, 20
# Older connections of one pod that are asked for at one look, 6 us each; the rest when these have ended.
MAX_CONNECTIONS_ASKED = 64


class Subject(Protocol):
    """The part of a ``PodKeeper`` that is attested."""

    @property
    def attestable(self) -> bool:
        """Whether it is enrolled and nothing is under way."""

    @property
    def wanted(self) -> bool:
        """Whether it is to be enrolled."""

    @property
    def lost(self) -> bool:
        """Whether it is to be enrolled and could not be kept so."""

    @property
    def netns(self) -> int:
        """The descriptor of its namespace; only while it is attestable."""

    @property
    def opened(self) -> int:
        """How often it opened a namespace: tells two apart whose descriptors have the same number."""

    @property
    def path(self) -> str:
        """Where its namespace is found."""

    @property
    def capture(self) -> Capture:
        """What is captured of it."""

    @property
    def existing(self) -> Existing:
        """Connections older than its capture."""

    @existing.setter
    def existing(self, value: Existing) -> None: ...

    def judged(self, verdict: Repair | GiveUp) -> None:
        """Act."""

    def retry(self) -> None:
        """Try to enroll it again."""


class RulesAsked(Protocol):
    """Who tells whether rules stand."""

    def stand(self, netns: int, capture: Capture) -> bool:
        """Whether exactly the rules of *capture* are there, and the routes that they need."""


class Ztunnel(Protocol):
    """The part of ``ZdsServer`` that is asked."""

    @property
    def connected(self) -> bool:
        """Whether there is one that has its snapshot."""

    def pids(self) -> frozenset[int]:
        """The processes."""

    def held(self, uid: str) -> frozenset[int]:
        """Inodes of the listeners of *uid* that the agent holds duplicates of."""


@dataclass(slots=True)
class _Watched:
    """One enrolled pod, and what it looked like when all was well."""

    opened: int
    netns: int
    identity: tuple[int, int]
    watch: NetnsWatch
    capture: Capture | None = None
    # The state of the rules that were found to be right; b"": read them.
    state: bytes = b""
    holders: Holders = field(default_factory=dict)
    # What it looked like when all was well; equal bytes need no second look. b"": look.
    fingerprint: bytes = b""
    past: Past = field(default_factory=Past)


@dataclass(slots=True)
class _Lost:
    """One pod that could not be kept, and when to try again."""

    attempts: int
    at: float


@dataclass(frozen=True, slots=True)
class AttestationStatistics:
    """What is, and what was seen and done since the agent's start.

    Attributes:
        repairs: By what was put right.
        plaintext: Uid -> how many connections older than its enrollment still live, where there are any.
    """

    enrolled: int
    lost: int
    checks: int
    given_up: int
    repairs: Mapping[str, int]
    plaintext: Mapping[str, int]


class Attestor:
    """Looks at the pods of one node.

    Args:
        subjects: The keepers by uid; looked up anew each time.
        rules: Who reads rules that are not nf_tables'; None for those that are.
    """

    def __init__(
        self, subjects: Mapping[str, Subject], ztunnel: Ztunnel, rules: RulesAsked | None = None
    ) -> None:
        self._subjects = subjects
        self._ztunnel = ztunnel
        self._rules = rules or evidence.RuleReader()
        self._legacy = rules is not None
        self._watched: dict[str, _Watched] = {}
        self._lost: dict[str, _Lost] = {}
        self._owners: dict[int, str] = {}
        self._epoll = select.epoll()
        self._sockets: frozenset[int] | None = None
        self._repairs: Counter[str] = Counter()
        self._checks = 0
        self._given_up = 0
        self.on_round: Callable[[], None] = lambda: None

    def statistics(self) -> AttestationStatistics:
        """For metrics and reports."""
        enrolled = sum(1 for each in self._subjects.values() if each.attestable)
        lost = sum(1 for each in self._subjects.values() if each.lost)
        older = {uid: len(each.existing.kept) for uid, each in self._subjects.items() if not each.lost}
        plaintext = {uid: number for uid, number in older.items() if number}
        return AttestationStatistics(
            enrolled, lost, self._checks, self._given_up, dict(self._repairs), plaintext
        )

    async def run(self) -> None:
        """Attest until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._every_second)
                nursery.start_soon(self._on_events)
        finally:
            self.close()

    def close(self) -> None:
        """Close what was opened to look at pods."""
        for uid in list(self._watched):
            self._forget(uid)
        self._epoll.close()

    async def _every_second(self) -> None:
        while True:
            started = trio.current_time()
            looks, number = self._looks(), len(self._subjects)
            parts = min(-(-number // TOGETHER), MOST_PARTS) or 1
            for part in range(1, parts + 1):
                share = -(-number // parts)
                await self._take_turns(itertools.chain(itertools.islice(looks, share), self._first_looks()))
                await trio.sleep_until(started + CHECK_SECONDS * part / parts)
            await self._take_turns(looks)
            self.on_round()

    async def _take_turns(self, looks: Iterator[None]) -> None:
        """Look, and let others run in between."""
        rested = trio.current_time()
        for _ in looks:
            if trio.current_time() - rested > LOOKING_SECONDS:
                await trio.lowlevel.checkpoint()
                rested = trio.current_time()
        self._sockets = None

    def look_at_all(self) -> None:
        """One round, without rest; what ``run`` does once a second."""
        for _ in self._looks():
            pass

    def _looks(self) -> Iterator[None]:
        for uid in self._watched.keys() - self._subjects.keys():
            self._forget(uid)
        for uid in tuple(self._subjects):
            self._look(uid)
            yield
        self._sockets = None

    def _first_looks(self) -> Iterator[None]:
        """At those that were enrolled since the round began."""
        for uid, subject in tuple(self._subjects.items()):
            if uid not in self._watched and subject.attestable:
                self._look(uid)
                yield

    async def _on_events(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for uid in {self._owners[fd] for fd, _ in self._epoll.poll(0) if fd in self._owners}:
                if (watched := self._watched.get(uid)) is not None:
                    watched.fingerprint = b""  # Of routing, news are all there is.
                self._look(uid)
            self._sockets = None
            await trio.sleep(PAUSE_SECONDS)

    def _look(self, uid: str) -> None:
        subject = self._subjects.get(uid)
        if subject is None:
            return
        if not subject.lost:
            self._lost.pop(uid, None)
        if subject.attestable:
            self._attest(uid, subject)
        elif subject.lost:
            self._forget(uid)
            self._try_again(uid, subject)
        elif not subject.wanted:
            self._forget(uid)

    def _attest(self, uid: str, subject: Subject) -> None:
        now = time.monotonic()
        self._checks += 1
        try:
            watched = self._watch(uid, subject)
            self._count_older(watched, subject)
            if self._is_unchanged(watched, subject):
                return
            look = watched.watch.look(names=subject.capture.dns)
            seen = self._see(uid, watched, subject, look)
        except OSError as exc:
            log.error("%s cannot be attested: %s", uid, exc)
            self._forget(uid)
            return
        verdict, watched.past = decide(seen, watched.past, now, self._ztunnel_now())
        # What moves while it is looked at is not what was seen.
        watched.fingerprint = look.fingerprint if isinstance(verdict, Fine) else b""
        self._obey(uid, subject, verdict)

    def _count_older(self, watched: _Watched, subject: Subject) -> None:
        if subject.existing.kept:
            living = watched.watch.living(subject.existing.kept[:MAX_CONNECTIONS_ASKED])
            subject.existing = Existing(tuple(living) + subject.existing.kept[MAX_CONNECTIONS_ASKED:])

    def _is_unchanged(self, watched: _Watched, subject: Subject) -> bool:
        """The quick look: the pod is to the byte what it was when all was well."""
        return (
            watched.fingerprint != b""
            and (self._ztunnel.connected or bool(self._ztunnel.pids()))
            and (watched.capture is (now := subject.capture) or watched.capture == now)
            and evidence.namespace_at(subject.path, watched.identity) is Namespace.SAME
            and watched.watch.fingerprint(names=subject.capture.dns) == watched.fingerprint
        )

    def _ztunnel_now(self) -> attestation_plan.Ztunnel:
        if self._ztunnel.connected:
            return attestation_plan.Ztunnel.THERE
        arriving = bool(self._ztunnel.pids())
        return attestation_plan.Ztunnel.ARRIVING if arriving else attestation_plan.Ztunnel.AWAY

    def _obey(self, uid: str, subject: Subject, verdict: Verdict) -> None:
        match verdict:
            case Repair(what, reason):
                log.warning("%s is put right: %s", uid, reason)
                self._repairs[what.value] += 1
                subject.judged(verdict)
            case GiveUp(reason):
                self._given_up += 1
                self._lost[uid] = _Lost(0, time.monotonic() + retry_delay(0))
                log.error("%s is not enrolled any more: %s", uid, reason)
                subject.judged(verdict)
            case Wait() | Fine():
                pass

    def _try_again(self, uid: str, subject: Subject) -> None:
        now = time.monotonic()
        lost = self._lost.setdefault(uid, _Lost(0, now))
        if now >= lost.at:
            lost.attempts += 1
            lost.at = now + retry_delay(lost.attempts)
            subject.retry()

    def _watch(self, uid: str, subject: Subject) -> _Watched:
        found = self._watched.get(uid)
        if found is not None and found.opened == subject.opened:
            return found
        past = found.past if found is not None else Past()
        self._forget(uid)
        watch = NetnsWatch(subject.netns, PROXY_PORTS, names_port=DNS_CAPTURE_PORT, legacy=self._legacy)
        identity = netns_identity(subject.netns)
        made = _Watched(subject.opened, subject.netns, identity, watch, past=past)
        self._watched[uid] = made
        for fd in watch.event_fds():
            self._owners[fd] = uid
            self._epoll.register(fd, select.EPOLLIN)
        return made

    def _forget(self, uid: str) -> None:
        watched = self._watched.pop(uid, None)
        if watched is None:
            return
        for fd in watched.watch.event_fds():
            self._owners.pop(fd, None)
            with suppress(OSError):
                self._epoll.unregister(fd)
        watched.watch.close()

    def _see(self, uid: str, watched: _Watched, subject: Subject, look: Look) -> Seen:
        namespace = evidence.namespace_at(subject.path, watched.identity)
        if namespace is not Namespace.SAME:
            return Seen(namespace=namespace)
        who, detail = self._known(partial(self._listeners, uid, watched), look.listeners)
        if who is Listeners.OURS and subject.capture.dns:
            who, detail = self._known(partial(self._name_servers, uid, watched), look.name_servers)
        if who is Listeners.OURS and self._ztunnel_now() is attestation_plan.Ztunnel.AWAY:
            who, detail = Listeners.HELD, "nobody accepts its connections: no ztunnel serves this node"
        return Seen(listeners=who, rules=self._see_rules(watched, subject.capture, look.rules), detail=detail)

    def _see_rules(self, watched: _Watched, capture: Capture, state: bytes) -> Rules:
        touched = watched.watch.routing_touched()
        if state == watched.state and not touched and watched.capture == capture:
            return Rules.STAND
        watched.state = b""
        if not self._rules.stand(watched.netns, capture):
            return Rules.DIFFER
        # What changed between the question and the look is seen the next time.
        watched.state, watched.capture = state, capture
        return Rules.STAND

    def _known(
        self, judge: Callable[[_Found | None, evidence.Namer], tuple[Listeners, str]], found: _Found
    ) -> tuple[Listeners, str]:
        """How *judge* takes what was *found*, knowing what we hold by now; it looks anew for None."""
        known = self._sockets is not None
        # Who it is matters when it is somebody else, and by now that is not said.
        who, detail = judge(found, _nobody if known else owner)
        if who is Listeners.FOREIGN and known:
            # Opened since the last look at what we hold.
            self._sockets = None
            who, detail = judge(None, owner)
        return who, detail

    def _listeners(
        self, uid: str, watched: _Watched, seen: Holders | None, name: evidence.Namer
    ) -> tuple[Listeners, str]:
        found = watched.watch.listeners() if seen is None else seen
        if len(found) == len(PROXY_PORTS) and (found == watched.holders or self._are_held(uid, found)):
            watched.holders = found
            return Listeners.OURS, ""
        who, detail = evidence.listeners(found, PROXY_PORTS, self._ours(), name)
        if who is Listeners.OURS:
            watched.holders = found
        return who, detail

    def _name_servers(
        self, uid: str, watched: _Watched, seen: DoorHolders | None, name: evidence.Namer
    ) -> tuple[Listeners, str]:
        found, doors = watched.watch.name_servers() if seen is None else seen, watched.watch.doors
        if len(found) == len(doors) and self._are_held(uid, found):
            return Listeners.OURS, ""
        return evidence.name_servers(found, doors, self._ours(), name)

    def _are_held(self, uid: str, found: Mapping[Any, tuple[int, bytes]]) -> bool:
        """Ours at a glance: reading what every process holds takes milliseconds on a node of many pods."""
        return {inode for inode, _ in found.values()} <= self._ztunnel.held(uid)

    def _ours(self) -> frozenset[int]:
        """The sockets of the node daemon; an upgraded ztunnel's may be held by us alone for a moment."""
        if self._sockets is None:
            self._sockets = evidence.sockets_of((*self._ztunnel.pids(), "self"))
        return self._sockets


def _nobody(_inode: int) -> str:
    return ""
