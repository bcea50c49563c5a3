"""``ambient authz check``: what policy decides between two workloads, and which rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from ambient.cli import output
from ambient.cli.session import DeskCommand, DeskGroup, Session, marks, pass_session
from ambient.wire.admin import ExitCode


@click.group(cls=DeskGroup)
def authz() -> None:
    """Ask what policy decides."""


@authz.command(cls=DeskCommand)
@click.argument("source")
@click.argument("destination")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Destination port; default: the only or first one."
)
@pass_session
def check(session: Session, source: str, destination: str, port: int | None) -> int:
    """May SOURCE (pod) reach DESTINATION (pod or svc/NAME)? Exit 1 on DENY."""
    with session.control() as control:
        result = control.call(
            "authz_check",
            source=qualified(session, source),
            destination=qualified(session, destination),
            port=port or 0,
        )
    allowed = bool(result.get("allowed", str(result.get("verdict", "")).upper() in ("ALLOW", "ALLOWED")))
    session.emit(
        "AuthzCheck", {**result, "allowed": allowed}, lambda: _text(source, destination, result, allowed)
    )
    return 0 if allowed else int(ExitCode.FAILED)


def qualified(session: Session, text: str) -> dict[str, str]:
    """Read ``NAME``, ``pod/NAME``, ``svc/NAME`` and ``NAME.NAMESPACE`` into what control takes."""
    from ambient.cli import kinds

    kind, name = kinds.parse_target(text, "Pod")
    name, dot, namespace = name.partition(".")
    return {"kind": kind.lower(), "namespace": namespace if dot else session.ns, "name": name}


def _text(source: str, destination: str, result: Mapping[str, Any], allowed: bool) -> str:
    good, _warning, bad = marks()
    word = "ALLOW" if allowed else "DENY"
    rows = [
        ("VERDICT", word),
        ("REASON", result.get("reason")),
        ("POLICY", result.get("policy")),
        ("LAYER", result.get("layer")),
        ("PATH", _path(result)),
    ]
    width = max(len(name) for name, _ in rows) + len(output.GAP)
    lines = [f"{name.ljust(width)}{output.cell(value)}\n" for name, value in rows]
    return f"{good if allowed else bad} {source} -> {destination}\n" + "".join(lines)


def _path(result: Mapping[str, Any]) -> str:
    return " -> ".join(str(step) for step in result.get("path") or [])
