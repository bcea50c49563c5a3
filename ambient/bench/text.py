"""A run as people read it: one table of modes, one of ratios, and what went wrong. Floor 5, pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

HEADERS = (
    "MODE", "RPS", "P50 ms", "P90 ms", "P99 ms", "CPU us/req", "CORES", "PSS MiB", "PROXIES", "HANDSHAKES",
    "WIRE KiB/req", "RESTARTS", "SWITCH s",
)  # fmt: skip
RATIO_HEADERS = ("RATIO", "CPU/REQUEST", "PSS", "P50", "P99")
RATIO_NAMES = ("cpu_us_per_request", "pss_bytes", "latency_p50", "latency_p99")


def mode_row(mode: Mapping[str, Any]) -> tuple[str, ...]:
    """One mode; a mode that failed a gate has no numbers to look at."""
    name = mode["mode"] if mode["engine"] == "ambient" else f"{mode['mode']} ({mode['engine']})"
    if not mode["valid"]:
        return (name, "invalid", *[""] * (len(HEADERS) - 2))
    total, delay, requests = mode["totals"], mode["latency_us"], mode["requests"]
    return (
        name,
        f"{requests['achieved_rps']:.1f}",
        *(f"{delay[key] / 1000:.2f}" for key in ("p50", "p90", "p99")),
        f"{total['cpu_us_per_request']:.0f}",
        f"{total['cpu_cores']:.3f}",
        f"{total['pss_bytes'] / 2**20:.1f}",
        str(total["proxies"]),
        str(total["handshakes"]),
        f"{total['bytes_on_wire'] / 1024 / max(1, requests['ok']):.1f}",
        str(total["pod_restarts"]),
        f"{total['enroll_seconds']:.2f}",
    )


def ratio_cell(ratio: Mapping[str, Any] | None) -> str:
    """``0.42 [0.39, 0.45]``; a ratio that is not resolved shows no number to quote."""
    if ratio is None:
        return ""
    if not ratio["resolved"]:
        return "unresolved" if ratio["value"] is not None else "invalid"
    low, high = ratio["ci95"]
    return f"{ratio['value']:.2f} [{low:.2f}, {high:.2f}]"


def ratio_rows(ratios: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """One row a pair of modes."""
    return [(name, *(ratio_cell(found.get(key)) for key in RATIO_NAMES)) for name, found in ratios.items()]


def remarks(run: Mapping[str, Any]) -> list[str]:
    """Why modes are invalid and ratios unresolved, each said once."""
    said = []
    for mode in run["modes"]:
        said += [f"{mode['mode']} ({mode['engine']}) is invalid: {why}" for why in mode["invalid_because"]]
    said += [remark for name, found in run["ratios"].items() if (remark := _unresolved(name, found))]
    fair = run["gates"].get("sidecar_within_1_5x_envoy")
    cost = run["gates"].get("sidecar_to_envoy_cpu")
    if fair is None and any(
        mode["mode"] == "sidecar" and mode["engine"] == "ambient" for mode in run["modes"]
    ):
        said.append("our sidecar was not compared with Envoy: pip install 'ambient-mesh[envoy]'")
    elif fair is False:
        said.append(f"our sidecar costs {cost:.2f}x Envoy's CPU per request: ratios against it are invalid")
    elif fair:
        said.append(f"our sidecar costs {cost:.2f}x Envoy's CPU per request (limit 1.5)")
    return said


def _unresolved(name: str, found: Mapping[str, Mapping[str, Any]]) -> str:
    """Why a pair's ratios are not resolved, on one line."""
    reasons: dict[str, list[str]] = {}
    for metric, ratio in found.items():
        if ratio["value"] is not None and not ratio["resolved"]:
            reasons.setdefault(ratio["unresolved_because"], []).append(metric)
    text = "; ".join(f"{', '.join(metrics)} ({why})" for why, metrics in reasons.items())
    return f"{name} is unresolved: {text}" if text else ""


def align(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with the first column to the left and numbers to the right."""
    lines = [headers, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(headers))]
    text = []
    for line in lines:
        rest = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        text.append("   ".join([line[0].ljust(widths[0]), *rest]).rstrip() + "\n")
    return "".join(text)


def markdown(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a Markdown table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary(run: Mapping[str, Any]) -> str:
    """The whole text of a run."""
    load = run["load"]
    first = (
        f"{run['scenario']}: {load['offered_rps']:g} requests/s over {load['connections']} connections, "
        f"{load['rounds']} rounds, {load['duration_seconds']:g} s per mode, fabric {run['fabric']}\n\n"
    )
    modes = align(HEADERS, [mode_row(mode) for mode in run["modes"]])
    pairs = align(RATIO_HEADERS, ratio_rows(run["ratios"])) if run["ratios"] else ""
    shown = {name: value for name, value in run["gates"].items() if name != "sidecar_to_envoy_cpu"}
    gate = ", ".join(f"{name}: {_yes(value)}" for name, value in shown.items())
    notes = "".join(f"* {remark}\n" for remark in remarks(run))
    return f"{first}{modes}\n{pairs}\nGates: {gate}\n{notes}"


def _yes(value: object) -> str:
    return "not measured" if value is None else "yes" if value else "NO"
