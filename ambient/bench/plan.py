"""What a run will do, decided before it starts: options, order of the modes, how long it will take.

Floor 5, pure.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Self

from ambient.bench.gates import MIN_REQUESTS
from ambient.errors import ConfigError

MODES = ("none", "sidecar", "ambient", "ambient+waypoint")
# Which processes carry the bytes of a mode; an idle ztunnel beside sidecars would not be there in a cluster.
ROLES = {
    "none": frozenset[str](),
    "sidecar": frozenset({"sidecar"}),
    "ambient": frozenset({"ztunnel"}),
    "ambient+waypoint": frozenset({"ztunnel", "waypoint"}),
}
# The quick run has 180 s on two cores: 26 turns (four modes in six rounds, Envoy in two) of 2.3 s load, 1 s
# warm-up and about 2 s to switch and to start; measured 2:06 with 22 turns, 2:48 on a machine at load 6.
QUICK_ROUNDS, QUICK_RATE, QUICK_CONNECTIONS = 6, 150.0, 16
QUICK_REQUESTS = MIN_REQUESTS + 100
# Envoy beside our sidecar answers one question of yes or no; it need not be resolved to a percent.
JUDGED_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Turn:
    """One mode in one round, and whose proxy carries it."""

    mode: str
    engine: str = "ambient"

    @property
    def label(self) -> str:
        """How a person tells two turns apart."""
        return self.mode if self.engine == "ambient" else f"{self.mode}/{self.engine}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Everything that decides what a run does.

    Attributes:
        duration: Seconds of measured load per mode, over all rounds together.
        warmup: Seconds of the same load before every measurement.
        judge: Whether real Envoy sidecars run beside ours, to see that ours are no straw men.
    """

    modes: tuple[str, ...] = MODES
    engine: str = "ambient"
    rate: float = 200.0
    duration: float = 30.0
    rounds: int = 5
    connections: int = 16
    seed: int = 7
    warmup: float = 1.0
    payload: int | None = None
    judge: bool = False

    def __post_init__(self) -> None:
        if unknown := [mode for mode in self.modes if mode not in MODES]:
            raise ConfigError(f"unknown mode {unknown[0]!r}; one of: {', '.join(MODES)}")
        if len(set(self.modes)) != len(self.modes) or not self.modes:
            raise ConfigError("name every mode once, and at least one")
        if min(self.rate, self.duration, self.rounds, self.connections) <= 0:
            raise ConfigError("rate, duration, rounds and connections must be above zero")

    def quick(self) -> Self:
        """The same in the least time that still resolves: 2,000 requests a mode."""
        return replace(
            self,
            rate=QUICK_RATE,
            duration=QUICK_REQUESTS / QUICK_RATE,
            rounds=QUICK_ROUNDS,
            connections=QUICK_CONNECTIONS,
        )

    @property
    def per_round(self) -> float:
        """Seconds of measured load in one round of one mode."""
        return self.duration / self.rounds

    @property
    def judge_turn(self) -> Turn | None:
        """Envoy's sidecar beside ours, if it is to run."""
        wanted = self.judge and self.engine == "ambient" and "sidecar" in self.modes
        return Turn("sidecar", "envoy") if wanted else None

    @property
    def turns(self) -> tuple[Turn, ...]:
        """Every turn that comes up in some round."""
        ours = tuple(Turn(mode, self.engine if mode == "sidecar" else "ambient") for mode in self.modes)
        return (*ours, self.judge_turn) if self.judge_turn else ours


def schedule(options: Options) -> list[list[Turn]]:
    """Every mode once a round, in an order that chance picks anew; no turn follows itself.

    Chance, because what runs first after a pause, or always after the same neighbour, would carry that
    neighbour's traces into every round.
    """
    chance = random.Random(options.seed)
    rounds: list[list[Turn]] = []
    for number in range(options.rounds):
        turns = [turn for turn in options.turns if turn != options.judge_turn or number < JUDGED_ROUNDS]
        order = chance.sample(turns, len(turns))
        if rounds and len(order) > 1 and order[0] == rounds[-1][-1]:
            order.append(order.pop(0))
        rounds.append(order)
    return rounds
