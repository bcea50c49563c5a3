"""What a run will do, decided before it starts: options, order of the modes, how long it will take.

Floor 5, pure.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
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
# The whole quick run has 180 s on two cores: 4 modes x 5 rounds x (4 s load + 1 s warm-up + switch).
QUICK_ROUNDS, QUICK_DURATION, QUICK_RATE, QUICK_CONNECTIONS = 5, 4.0, 100.0, 8


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
            duration=max(QUICK_ROUNDS * QUICK_DURATION, MIN_REQUESTS / QUICK_RATE),
            rounds=QUICK_ROUNDS,
            connections=QUICK_CONNECTIONS,
        )

    @property
    def per_round(self) -> float:
        """Seconds of measured load in one round of one mode."""
        return self.duration / self.rounds

    @property
    def turns(self) -> tuple[Turn, ...]:
        """What every round contains."""
        ours = tuple(Turn(mode, self.engine if mode == "sidecar" else "ambient") for mode in self.modes)
        judged = self.judge and self.engine == "ambient" and "sidecar" in self.modes
        return (*ours, Turn("sidecar", "envoy")) if judged else ours


def schedule(turns: Sequence[Turn], rounds: int, seed: int) -> list[list[Turn]]:
    """Every turn once a round, in an order that chance picks anew: no mode always follows another."""
    chance = random.Random(seed)
    return [chance.sample(list(turns), len(turns)) for _ in range(rounds)]
