"""From rounds to the document and the table. Floor 5, pure: the JSON is the shape of the interfaces page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ambient.bench import gates
from ambient.bench.cost import Used, cost
from ambient.bench.measure import ProxyCost, Round
from ambient.bench.plan import Options, Turn
from ambient.bench.statistics import Interval, mean_interval, percentile, percentile_interval, ratio_interval

API_VERSION = "ambient/v1"
RATIO_METRICS: Mapping[str, Callable[[Round], float]] = {
    "cpu_us_per_request": lambda one: one.cpu_us_per_request,
    "pss_bytes": lambda one: float(one.pss_bytes),
    "latency_p50": lambda one: one.latency(0.50),
    "latency_p99": lambda one: one.latency(0.99),
}
# The questions people ask: is ambient cheaper than sidecars, what does L7 add, what does a mesh cost at all.
RATIOS = (
    ("ambient", "sidecar"),
    ("ambient+waypoint", "sidecar"),
    ("ambient+waypoint", "ambient"),
    ("sidecar", "none"),
    ("ambient", "none"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A whole run: what was asked, on what, and what came of it."""

    scenario: str
    started: str
    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    fabric: str
    options: Options
    payload_bytes: int
    rounds: tuple[Round, ...]

    def of(self, turn: Turn) -> list[Round]:
        """The rounds of one turn, in order of the rounds."""
        return [one for one in self.rounds if one.turn == turn]

    def paired(self, above: Turn, below: Turn) -> tuple[list[Round], list[Round]]:
        """The rounds in which both ran, in the same order."""
        first, second = ({one.number: one for one in self.of(turn)} for turn in (above, below))
        both = sorted(first.keys() & second.keys())
        return [first[number] for number in both], [second[number] for number in both]


def document(run: Run) -> dict[str, Any]:
    """The ``BenchRun`` document."""
    reasons = _reasons(run)
    options = run.options
    return {
        "apiVersion": API_VERSION,
        "kind": "BenchRun",
        "scenario": run.scenario,
        "seed": options.seed,
        "started": run.started,
        "machine": dict(run.machine),
        "fabric": run.fabric,
        "versions": dict(run.versions),
        "load": {
            "offered_rps": options.rate,
            "duration_seconds": options.duration,
            "connections": options.connections,
            "payload_bytes": run.payload_bytes,
            "rounds": options.rounds,
        },
        "modes": [mode_document(turn, run.of(turn), reasons[turn]) for turn in options.turns],
        "ratios": ratios(run, reasons),
        "gates": gate_summary(run, reasons),
    }


def _reasons(run: Run) -> dict[Turn, list[str]]:
    """Why each turn is invalid; a proof of encryption needs the counter-proof of mode ``none``."""
    found = {
        turn: gates.invalid_because(turn.mode, [one.facts for one in run.of(turn)])
        for turn in run.options.turns
    }
    plain = [one.facts for turn in run.options.turns if turn.mode == "none" for one in run.of(turn)]
    shown = bool(plain) and all(one.wire is not None and one.wire.markers for one in plain)
    for turn, reasons in found.items():
        if turn.mode in gates.MTLS_MODES and not shown and not reasons:
            reasons.append("no round of mode none showed the marker, so its absence here proves nothing")
    return found


def mode_document(turn: Turn, rounds: Sequence[Round], reasons: Sequence[str]) -> dict[str, Any]:
    """One entry of ``modes``."""
    answered = sum(one.facts.ok for one in rounds)
    seconds = sum(one.seconds for one in rounds)
    proxies = proxy_documents(rounds)
    used = [Used(one["role"], one["cpu_seconds"] / max(seconds, 1e-9), one["pss_bytes"]) for one in proxies]
    return {
        "mode": turn.mode,
        "engine": turn.engine,
        "valid": not reasons,
        "invalid_because": list(reasons),
        "requests": {
            "sent": sum(one.facts.sent for one in rounds),
            "ok": answered,
            "failed": sum(one.facts.failed for one in rounds),
            "achieved_rps": _mean([one.facts.achieved_rps for one in rounds]),
            "schedule_lag_p99_us": round(gates.schedule_lag([one.facts for one in rounds])),
            "errors": _errors(rounds),
        },
        "latency_us": latency(rounds),
        "proxies": proxies,
        "totals": totals(rounds, len(proxies), seconds),
        "cost": cost(used, answered / seconds if seconds else 0.0),
    }


def _errors(rounds: Sequence[Round]) -> dict[str, int]:
    found: dict[str, int] = {}
    for one in rounds:
        for reason, count in one.errors.items():
            found[reason] = found.get(reason, 0) + count
    return found


def latency(rounds: Sequence[Round]) -> dict[str, Any]:
    """Percentiles over all rounds, and the interval of the one that people quote."""
    ordered = sorted(value for one in rounds for value in one.latencies_us)
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    found: dict[str, Any] = {name: round(percentile(ordered, share)) for name, share in shares.items()}
    interval = percentile_interval(ordered, 0.99)
    return {**found, "p99_ci95": [round(interval.low), round(interval.high)]}


def proxy_documents(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """What every proxy cost: CPU summed over the rounds, memory as its mean.

    A sidecar is another process after every switch: it is its pod's or node's name that stays.
    """
    groups: dict[str, list[ProxyCost]] = {}
    for one in rounds:
        for each in one.proxies:
            groups.setdefault(each.proxy.name, []).append(each)
    answered = max(1, sum(one.facts.ok for one in rounds))
    return [_proxy_document(name, costs, answered) for name, costs in sorted(groups.items())]


def _proxy_document(name: str, costs: Sequence[ProxyCost], answered: int) -> dict[str, Any]:
    proxy = costs[-1].proxy
    cpu = sum(one.cpu_seconds for one in costs)
    return {
        "name": name,
        "role": proxy.role,
        "node": proxy.node,
        "pod": proxy.pod,
        "cpu_seconds": round(cpu, 6),
        "cpu_us_per_request": round(1e6 * cpu / answered, 3),
        "pss_bytes": round(_mean([one.memory.pss_bytes for one in costs])),
        "rss_bytes": round(_mean([one.memory.rss_bytes for one in costs])),
        "threads": costs[-1].threads,
    }


def totals(rounds: Sequence[Round], proxies: int, seconds: float) -> dict[str, Any]:
    """The sums of a mode."""
    cpu = sum(each.cpu_seconds for one in rounds for each in one.proxies)
    per_request = [one.cpu_us_per_request for one in rounds]
    interval = mean_interval(per_request) if rounds else Interval(0.0, 0.0, 0.0)
    return {
        "proxies": proxies,
        "cpu_us_per_request": round(interval.value, 3),
        "cpu_us_per_request_ci95": _rounded(interval),
        "cpu_cores": round(cpu / seconds, 6) if seconds else 0.0,
        "pss_bytes": round(_mean([one.pss_bytes for one in rounds])),
        "handshakes": sum(one.handshakes for one in rounds),
        "bytes_on_wire": sum(one.wire_bytes for one in rounds),
        "pod_restarts": max((one.switched.restarts for one in rounds), default=0),
        "enroll_seconds": round(_mean([one.switched.seconds for one in rounds]), 3),
    }


def ratios(run: Run, reasons: Mapping[Turn, Sequence[str]]) -> dict[str, Any]:
    """Every ratio that the modes of this run allow."""
    by_mode = {
        turn.mode: turn
        for turn in run.options.turns
        if turn.engine == run.options.engine or turn.mode != "sidecar"
    }
    pairs = [(by_mode[a], by_mode[b]) for a, b in RATIOS if a in by_mode and b in by_mode]
    found = {f"{a.mode}/{b.mode}": _pair(run, a, b, reasons) for a, b in pairs}
    judge = run.options.judge_turn
    if judge is not None:
        found["sidecar/sidecar+envoy"] = _pair(run, by_mode["sidecar"], judge, reasons, judged=False)
    return found


def _pair(
    run: Run, above: Turn, below: Turn, reasons: Mapping[Turn, Sequence[str]], *, judged: bool = True
) -> dict[str, Any]:
    invalid = next((f"{t.label}: {reasons[t][0]}" for t in (above, below) if reasons[t]), "")
    if judged and not invalid and "sidecar" in (above.mode, below.mode):
        invalid = gates.straw_sidecar(ours_to_envoy(run))
    names = [name for name in RATIO_METRICS if below.mode != "none" or name.startswith("latency")]
    return {name: _ratio(run, above, below, name, invalid) for name in names}


def _ratio(run: Run, above: Turn, below: Turn, name: str, invalid: str) -> dict[str, Any]:
    if invalid:
        return {"value": None, "ci95": None, "resolved": False, "unresolved_because": invalid}
    rounds = run.paired(above, below)
    metric = RATIO_METRICS[name]
    interval = ratio_interval(*([metric(one) for one in each] for each in rounds))
    requests = min(sum(one.facts.ok for one in each) for each in rounds)
    why = gates.unresolved_because(interval, requests, width=not name.startswith("latency"))
    value = round(interval.value, 4) if interval else None
    found = {"value": value, "ci95": _rounded(interval) if interval else None, "resolved": not why}
    return {**found, "unresolved_because": why} if why else found


def ours_to_envoy(run: Run) -> float | None:
    """CPU per request of our sidecars over Envoy's, in this run; None if Envoy did not run."""
    ours, envoy = run.paired(Turn("sidecar"), Turn("sidecar", "envoy"))
    interval = ratio_interval([o.cpu_us_per_request for o in ours], [e.cpu_us_per_request for e in envoy])
    return interval.value if interval else None


def gate_summary(run: Run, reasons: Mapping[Turn, Sequence[str]]) -> dict[str, Any]:
    """The run's gates over all its modes."""
    facts = [one.facts for one in run.rounds]
    by_turn = [[one.facts for one in run.of(turn)] for turn in run.options.turns]
    wire = [fault for turn in run.options.turns for fault in _wire_faults(run, turn)]
    ours = ours_to_envoy(run)
    return {
        "rps_within_3_percent": all(gates.rps_holds(one) for one in by_turn),
        "no_errors": gates.no_errors(facts),
        "traffic_proven_encrypted": not wire
        and not any("marker" in r for why in reasons.values() for r in why),
        "client_not_saturated": all(gates.client_kept_up(one) for one in by_turn),
        # None: Envoy was not there to compare with.
        "sidecar_within_1_5x_envoy": None if ours is None else not gates.straw_sidecar(ours),
        "sidecar_to_envoy_cpu": None if ours is None else round(ours, 3),
    }


def _wire_faults(run: Run, turn: Turn) -> list[str]:
    rounds = run.of(turn)
    return gates.wire_faults(turn.mode, [one.facts for one in rounds]) if rounds else ["nothing ran"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _rounded(interval: Interval) -> list[float | None]:
    return [None if end is None else round(end, 4) for end in interval.ci95]
