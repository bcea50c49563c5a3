"""One mode in one round: switch, warm up, load, and read what it cost.

Floor 5. ``MeshPort`` is all this asks of a mesh, so that a fake can stand in for it.

Theory of operation
===================

    switch the mode   capture on   warm-up   |  clocks   load   clocks  |   memory   capture off
                                             '------- measured --------'

The capture is on from before the warm-up, because that is when connections and handshakes are made. Memory
is read outside the measured span: smaps_rollup walks page tables and would be paid by the proxies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ambient.bench import accounting
from ambient.bench.gates import RoundFacts, WireFacts
from ambient.bench.plan import ROLES, Options, Turn
from ambient.bench.statistics import percentile

# Above what the load itself takes: a pod's interpreter starts, connections open; picked, not measured.
SLACK_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One proxy of the mesh, by host PID.

    Attributes:
        beside: Further processes of the same proxy, such as the zygote of a ztunnel; it costs what all cost.
    """

    name: str
    role: str
    node: str
    pod: str | None
    pid: int
    beside: tuple[int, ...] = ()

    @property
    def pids(self) -> tuple[int, ...]:
        """All its processes."""
        return (self.pid, *self.beside)


@dataclass(frozen=True, slots=True)
class Switched:
    """What it took to get from a namespace outside the mesh into the mode."""

    seconds: float
    restarts: int


class Talker(Protocol):
    """A program of ours inside the mesh that speaks JSON lines."""

    def expect(self, event: str, timeout: float) -> dict[str, Any]:
        """Wait for the next line, which has to be *event*."""

    def say(self, line: str) -> None:
        """Send one line."""

    def close(self) -> None:
        """End it, whatever it does."""


class MeshPort(Protocol):
    """What a measurement needs of a mesh."""

    def switch(self, turn: Turn) -> Switched:
        """Change to the mode of *turn* and wait until it is so."""

    def proxies(self) -> Sequence[Proxy]:
        """Every proxy that runs now."""

    def load(self, arguments: Sequence[str]) -> Talker:
        """Start the generator in the client's pod."""

    def capture(self, marker: str) -> Talker | None:
        """Start the capture between the nodes; None where there is no wire to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyCost:
    """What one proxy cost in one round."""

    proxy: Proxy
    cpu_seconds: float
    memory: accounting.Memory
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Everything one round of one mode gave."""

    number: int
    turn: Turn
    facts: RoundFacts
    latencies_us: Sequence[int]
    proxies: tuple[ProxyCost, ...]
    switched: Switched
    handshakes: int
    wire_bytes: int
    seconds: float
    errors: Mapping[str, int] = field(default_factory=dict)

    @property
    def cpu_us_per_request(self) -> float:
        """CPU of all proxies together, per good answer."""
        return 1e6 * sum(one.cpu_seconds for one in self.proxies) / max(1, self.facts.ok)

    @property
    def pss_bytes(self) -> int:
        """Memory of all proxies together."""
        return sum(one.memory.pss_bytes for one in self.proxies)

    def latency(self, share: float) -> float:
        """A percentile of this round."""
        return percentile(sorted(self.latencies_us), share)


def measure(mesh: MeshPort, turn: Turn, options: Options, number: int, marker: str) -> Round:
    """Run one turn of round *number*; every turn of a round gets the same arrivals."""
    switched = mesh.switch(turn)
    capture = mesh.capture(marker)
    try:
        if capture is not None:
            capture.expect("ready", SLACK_SECONDS)
        load = mesh.load(load_arguments(options, options.seed + number, marker))
        try:
            result, costs, stable = _measured_span(mesh, turn, load, options)
        finally:
            load.close()
        wire = _stop(capture)
    finally:
        if capture is not None:
            capture.close()
    return _round(number, turn, options, switched, result, costs, stable, wire)


def load_arguments(options: Options, seed: int, marker: str) -> list[str]:
    """The generator's command line, but for the target, which the mesh knows."""
    pairs = {
        "--rate": options.rate,
        "--duration": options.per_round,
        "--warmup": options.warmup,
        "--connections": options.connections,
        "--seed": seed,
        "--marker": marker,
    }
    return [*(str(part) for pair in pairs.items() for part in pair), "--json", "--wait-go"]


def _measured_span(
    mesh: MeshPort, turn: Turn, load: Talker, options: Options
) -> tuple[dict[str, Any], tuple[ProxyCost, ...], bool]:
    load.expect("ready", options.warmup + SLACK_SECONDS)
    proxies = _of_mode(mesh, turn)
    before = _clocks(proxies)
    load.say("go")
    result = load.expect("result", options.per_round + SLACK_SECONDS)
    after = _clocks(proxies)
    stable = after.keys() == before.keys() and _of_mode(mesh, turn) == proxies
    costs = [_cost(one, before, after) for one in proxies if after.keys() >= set(one.pids)]
    return result, tuple(one for one in costs if one is not None), stable


def _of_mode(mesh: MeshPort, turn: Turn) -> list[Proxy]:
    roles = ROLES[turn.mode]
    return sorted((one for one in mesh.proxies() if one.role in roles), key=lambda one: one.name)


def _clocks(proxies: Sequence[Proxy]) -> dict[int, int]:
    found = {}
    for pid in (pid for one in proxies for pid in one.pids):
        try:
            found[pid] = accounting.cpu_ns(pid)
        except ProcessLookupError:
            continue  # It has ended: the round is not stable, and says so.
    return found


def _cost(one: Proxy, before: Mapping[int, int], after: Mapping[int, int]) -> ProxyCost | None:
    try:
        memory = accounting.total(accounting.memory(pid) for pid in one.pids)
        threads = sum(accounting.threads(pid) for pid in one.pids)
    except OSError:
        return None
    spent = sum(after[pid] - before[pid] for pid in one.pids)
    return ProxyCost(proxy=one, cpu_seconds=spent / 1e9, memory=memory, threads=threads)


def _stop(capture: Talker | None) -> dict[str, Any] | None:
    if capture is None:
        return None
    capture.say("stop")
    return capture.expect("result", SLACK_SECONDS)


def _round(
    number: int,
    turn: Turn,
    options: Options,
    switched: Switched,
    result: Mapping[str, Any],
    costs: tuple[ProxyCost, ...],
    stable: bool,
    wire: Mapping[str, Any] | None,
) -> Round:
    facts = RoundFacts(
        sent=result["sent"],
        ok=result["ok"],
        failed=result["failed"],
        offered_rps=result["sent"] / options.per_round,
        achieved_rps=result["achieved_rps"],
        schedule_lags_us=result["lags_us"],
        wire=wire_facts(wire) if wire else None,
        stable=stable,
    )
    return Round(
        number=number,
        turn=turn,
        facts=facts,
        latencies_us=result["latencies_us"],
        proxies=costs,
        switched=switched,
        # Every frame between nodes passes two links, so every ClientHello was seen twice.
        handshakes=wire["hellos"] // 2 if wire else 0,
        wire_bytes=wire["wire_bytes"] if wire else 0,
        seconds=options.per_round,
        errors=result["errors"],
    )


def wire_facts(wire: Mapping[str, Any]) -> WireFacts:
    """The capture's answer as a value."""
    names = (
        "markers",
        "plaintext",
        "packets",
        "dropped",
        "captured_bytes",
        "link_bytes_low",
        "link_bytes_high",
    )
    return WireFacts(**{name: wire[name] for name in names})
