"""``ambient check``: what this machine can run, and the mend for the rest."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ambient.cli.session import DeskCommand, Session, marks, pass_session
from ambient.fabric import boot, machine
from ambient.fabric.machine import Category, Check, Result

_COLORS = {Result.SUCCESS: "green", Result.WARNING: "yellow", Result.ERROR: "red"}


@click.command(cls=DeskCommand)
@click.option(
    "--pre",
    is_flag=False,
    flag_value="machine",
    metavar="[namespace/NS]",
    help="Only the machine; or: would enrolling NS work?",
)
@pass_session
def check(session: Session, pre: str | None) -> int:
    """Say what this machine can run; exit 1 only if something needed is missing."""
    found = [_machine(), *machine.categories(rootless=boot.is_rootless())]
    if pre and pre != "machine":
        found.append(_enrollment(session, pre))
    elif not pre and (session.where / "control.sock").exists():
        found.append(_mesh(session))
    body = {"categories": [as_json(one) for one in found], "success": not failed(found)}
    session.emit("Check", body, lambda: render(found))
    return 1 if failed(found) else 0


def failed(categories: Sequence[Category]) -> bool:
    """Whether any check failed; warnings do not count."""
    return any(one.result is Result.ERROR for category in categories for one in category.checks)


def as_json(category: Category) -> dict[str, Any]:
    """One category under its documented names."""
    checks = [
        {"description": one.description, "result": one.result.value, "hint": one.hint}
        for one in category.checks
    ]
    return {"name": category.name, "checks": checks}


def render(categories: Sequence[Category]) -> str:
    """The text of linkerd's check: category, line under it, one mark a line."""
    sign = dict(zip(Result, marks(), strict=True))
    lines = []
    for category in categories:
        lines += [category.name, "-" * len(category.name)]
        for one in category.checks:
            lines.append(f"{click.style(sign[one.result], fg=_COLORS[one.result])} {one.description}")
            lines += [f"    {one.hint}"] if one.hint else []
        lines.append("")
    verdict = Result.ERROR if failed(categories) else Result.SUCCESS
    return "\n".join([*lines, f"Status check results are {sign[verdict]}", ""])


def _machine() -> Category:
    cores = len(os.sched_getaffinity(0))
    few = "" if cores > 1 else "the load and the mesh will share it: expect wide intervals"
    return Category(
        "machine",
        (
            Check(description=f"Linux {platform.release()}", result=Result.SUCCESS),
            Check(description=f"Python {platform.python_version()}", result=Result.SUCCESS),
            Check(
                description=f"{cores} processors", result=Result.WARNING if few else Result.SUCCESS, hint=few
            ),
        ),
    )


def _mesh(session: Session) -> Category:
    """The mesh that runs here."""
    from ambient.errors import AmbientError

    title = f"a mesh answers in {session.where}"
    try:
        with session.control() as control:
            control.call("status")
    except AmbientError as exc:
        return Category(
            "mesh", (Check(description=title, result=Result.ERROR, hint=f"{exc}; or: ambient clean"),)
        )
    return Category("mesh", (Check(description=title, result=Result.SUCCESS),))


def _enrollment(session: Session, target: str) -> Category:
    """What enrolling *target* would do, asked of control without doing it."""
    from ambient.cli.enrollment import targets_of

    with session.control() as control:
        asked = {"targets": targets_of(session, [target]), "mode": "ambient", "existing": "keep"}
        result = control.call("enroll", **asked, engine="ambient", dry_run=True, wait=False)
    would = [check for pod in result.get("pods", []) for check in _would(pod)]
    skipped = [_skipped(uid, reason) for uid, reason in dict(result.get("skipped") or {}).items()]
    return Category(target, (*would, *skipped))


def _would(pod: Mapping[str, Any]) -> list[Check]:
    """What stands in the way of one pod; one line that says so if nothing does."""
    name = f"pod/{pod.get('name')}"
    found = [
        Check(
            description=f"{name}: {each['reason']}",
            result=Result.ERROR if each["blocks"] else Result.WARNING,
            hint=str(each.get("hint") or ""),
        )
        for each in pod.get("findings", ())
    ]
    if kept := pod.get("established_connections_kept"):
        text = f"{name}: {kept} established connections would stay plaintext until they end"
        found.append(Check(description=text, result=Result.WARNING, hint="or: enroll --existing reset"))
    if any(one.result is Result.ERROR for one in found):
        return found
    return [Check(description=f"{name} {pod.get('reason')}", result=Result.SUCCESS), *found]


def _skipped(uid: str, reason: str) -> Check:
    """A pod of the namespace that no enrollment takes."""
    name = uid.rpartition("/")[2].partition("#")[0]
    return Check(description=f"pod/{name}: {reason}", result=Result.ERROR, hint="it would stay as it is")
