"""Asking the nodes' agents how enrolling a pod would go, and what they attest.

Floor 3. Frames of the daemons' own on the distribution wire: ``survey`` {id, uid} is answered by one
``surveyed`` {id, ...}; ``attestation`` {enrolled, lost, checks, repairs, plaintext} comes every few seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import trio

from ambient.control.bell import Bell
from ambient.control.distribution import Distribution, Peer
from ambient.control.pods import Pod

log = logging.getLogger("ambient.control")

# An agent answers in milliseconds a pod; picked, not measured.
ANSWER_SECONDS = 10.0
# An agent says every 5 s that it attests; three times that without a word, and nobody knows. Picked.
STALE_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeAttestation:
    """An agent's last word on all of its pods.

    Attributes:
        heard: Unix seconds.
        plaintext: Uid -> connections older than the enrollment that still live, where there are any.
    """

    heard: float
    enrolled: int = 0
    lost: int = 0
    checks: int = 0
    repairs: int = 0
    plaintext: Mapping[str, int] = field(default_factory=dict)


class Agents:
    """Control's conversation with the agents beyond what every daemon is told.

    Args:
        clock: Returns unix seconds.
    """

    def __init__(self, distribution: Distribution, clock: Callable[[], float]) -> None:
        self._distribution = distribution
        self._clock = clock
        self._numbers = count(1)
        self._answers: dict[int, Mapping[str, Any] | None] = {}
        self._bell = Bell()
        self._attestations: dict[str, NodeAttestation] = {}

    def received(self, peer: Peer, frame: Mapping[str, Any]) -> None:
        """Take a frame of an agent; of anybody else it means nothing."""
        if peer.role != "agent":
            log.debug("%s sent %s", peer, frame.get("kind"))
            return
        match frame:
            case {"kind": "surveyed", "id": int(number)} if number in self._answers:
                self._answers[number] = frame
                self._bell.ring()
            case {"kind": "attestation"}:
                self._attestations[peer.node] = _attestation(frame, self._clock())
            case _:
                log.debug("%s sent %s", peer, frame.get("kind"))

    def attestation(self, node: str) -> NodeAttestation | None:
        """What the node's agent last said; None if it has been silent for too long."""
        found = self._attestations.get(node)
        return found if found is not None and self._clock() - found.heard < STALE_SECONDS else None

    def plaintext(self, pod: Pod) -> int:
        """Connections of *pod* that are older than its enrollment and still live."""
        found = self.attestation(pod.node)
        return 0 if found is None else found.plaintext.get(pod.uid, 0)

    async def survey(self, pods: Iterable[Pod]) -> dict[str, Mapping[str, Any]]:
        """Ask about each pod; the answers by uid. Whoever is not answered for is not in it."""
        links = {each.peer.node: each for each in self._distribution.links() if each.peer.role == "agent"}
        asked: dict[int, str] = {}
        for pod in pods:
            if (link := links.get(pod.node)) is not None and link.greeted and pod.status.netns:
                number = next(self._numbers)
                asked[number], self._answers[number] = pod.uid, None
                link.say("survey", id=number, uid=pod.uid)
        with trio.move_on_after(ANSWER_SECONDS):
            await self._bell.until(lambda: all(self._answers[number] is not None for number in asked))
        answers = {uid: self._answers.pop(number) for number, uid in asked.items()}
        return {uid: answer for uid, answer in answers.items() if answer is not None}


def _attestation(frame: Mapping[str, Any], now: float) -> NodeAttestation:
    numbers = {name: frame.get(name) for name in ("enrolled", "lost", "checks", "repairs")}
    plaintext = frame.get("plaintext")
    return NodeAttestation(
        heard=now,
        plaintext={
            str(uid): number
            for uid, number in (plaintext if isinstance(plaintext, dict) else {}).items()
            if isinstance(number, int)
        },
        **{name: value for name, value in numbers.items() if isinstance(value, int)},
    )
