"""Enrollment under live traffic, beside the same with Istio's published rules; and how fast it is, as JSON.

    python benchmarks/enroll.py -o json [--cycles 50] [--cni builtin] [--rules ambient,istio-published]
    python benchmarks/enroll.py -o json --pods 250,1000

Every row runs in namespaces of its own, which end with it, with real daemons (control, agents, ztunnels) and
bare pods. Rules and order of removal are the only difference between rows: the proxy, the agent and the
control plane are the same.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.enrolling.cycles import run_case
from benchmarks.enrolling.isolation import isolated
from benchmarks.enrolling.scale import run_scale
from benchmarks.enrolling.wires import WIRES

RULES, ORDERS = ("ambient", "istio-published"), ("drain", "delete")


def main() -> int:
    """Measure what was asked for."""
    options = _options().parse_args()
    if options.pods:
        rows = [_alone(options, functools.partial(run_scale, pods=pods)) for pods in options.pods]
    else:
        rows = [_row(options, rules, order) for rules in options.rules for order in options.unenroll]
    print(_show(rows, options.output))
    return 0


def _row(options: argparse.Namespace, rules: str, order: str) -> dict[str, Any]:
    what = {"rules": rules, "unenroll": order, "cycles": options.cycles, "starve": options.starve}
    return _alone(options, functools.partial(run_case, **what))


def _alone(options: argparse.Namespace, measure: Callable[..., Any]) -> dict[str, Any]:
    """Measure in namespaces that end with it."""
    with tempfile.TemporaryDirectory(prefix="ambient-enroll-") as directory:
        run_dir = Path(options.keep or directory, "run")
        made = functools.partial(measure, run_dir, cni=options.cni, wire=WIRES[options.cni])
        row: dict[str, Any] = isolated(functools.partial(trio.run, made), rootless=options.rootless)
    return row


def _show(rows: list[dict[str, Any]], output: str) -> str:
    if output == "json":
        return json.dumps({"kind": "EnrollBenchmark", "rows": rows}, indent=2)
    shown = [name for name, value in rows[0].items() if not isinstance(value, dict) or "p50" in value]
    lines = [shown, *([_cell(row[name]) for name in shown] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(shown))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _cell(value: object) -> str:
    return f"{value['p50']}/{value['p99']}" if isinstance(value, dict) else str(value)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", choices=("json", "table"), default="table")
    parser.add_argument("--cycles", type=int, default=50)
    parser.add_argument("--cni", choices=tuple(WIRES), default="builtin")
    parser.add_argument("--rules", type=_several(RULES), default=RULES)
    parser.add_argument("--unenroll", type=_several(ORDERS), default=ORDERS, help="the order of removal")
    parser.add_argument(
        "--pods",
        type=lambda text: [int(each) for each in text.split(",")],
        help="measure how fast so many pods are enrolled, instead of cycles under traffic",
    )
    parser.add_argument(
        "--starve", type=int, default=0, metavar="N", help="with N processes that take the CPU away meanwhile"
    )
    parser.add_argument("--keep", metavar="DIR", help="have the logs of (one) row stay there")
    parser.add_argument(
        "--rootless", action="store_true", default=os.geteuid() != 0, help="in a user namespace, even as root"
    )
    return parser


def _several(known: tuple[str, ...]) -> Any:
    def several(text: str) -> tuple[str, ...]:
        chosen = tuple(text.split(","))
        if unknown := set(chosen) - set(known):
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not of {', '.join(known)}")
        return chosen

    return several


if __name__ == "__main__":
    sys.exit(main())
