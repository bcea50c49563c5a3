"""``ambient enroll`` and ``ambient unenroll``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ambient.cli import kinds, output
from ambient.cli.session import DeskCommand, Session, marks, pass_session
from ambient.errors import ConfigError
from ambient.wire.admin import CallFailed, ExitCode

HEADERS = ("NAMESPACE", "POD", "NODE", "ENROLLED", "RESTARTS", "KEPT", "MS", "REASON")
# Connections shown for each pod in text; JSON has a hundred.
SHOWN = 5
_WAIT = click.option("--wait/--no-wait", default=True, help="Return when every pod is done (default).")
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
_EXISTING = click.option(
    "--existing",
    type=click.Choice(["keep", "reset"]),
    default="keep",
    help="Established connections: leave them alone, or reset them.",
)


@click.command(cls=DeskCommand)
@click.argument("targets", nargs=-1, required=True)
@click.option("--mode", type=click.Choice(["ambient", "sidecar", "none"]), default="ambient")
@click.option("--engine", type=click.Choice(["ambient", "envoy"]), default="ambient", help="Whose sidecar.")
@_EXISTING
@_DRY_RUN
@_WAIT
@pass_session
def enroll(session: Session, /, targets: tuple[str, ...], mode: str, **options: Any) -> int:
    """Take the pods of TARGETS (namespace/NS, pod/NAME) into the mesh while they run."""
    return _switch(session, targets, mode, options)


@click.command(cls=DeskCommand)
@click.argument("targets", nargs=-1, required=True)
@_EXISTING
@_DRY_RUN
@_WAIT
@pass_session
def unenroll(session: Session, /, targets: tuple[str, ...], **options: Any) -> int:
    """Release the pods of TARGETS; what their proxied connections carry goes on until it ends."""
    return _switch(session, targets, "none", {**options, "engine": "ambient"})


def targets_of(session: Session, texts: Sequence[str]) -> list[dict[str, str]]:
    """Read ``namespace/NS`` and ``pod/NAME``.

    Raises:
        UsageError: something else.
    """
    try:
        return [_target(session, text) for text in texts]
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc


def _target(session: Session, text: str) -> dict[str, str]:
    kind, name = kinds.parse_target(text)
    match kind:
        case "Namespace":
            return {"kind": "namespace", "namespace": name, "name": name}
        case "Pod":
            return {"kind": "pod", "namespace": session.ns, "name": name}
        case _:
            raise ConfigError(f"cannot enroll {text!r}; give namespace/NS or pod/NAME")


def _switch(session: Session, texts: Sequence[str], mode: str, options: Mapping[str, Any]) -> int:
    targets = targets_of(session, texts)
    with session.control() as control:
        stream = control.stream("enroll", targets=targets, mode=mode, timeout=session.timeout, **options)
        result = _follow(session, stream)
    session.emit("Enrollment", result, lambda: _text(session, texts, mode, result))
    if options["dry_run"]:
        session.say("Dry run: nothing was changed.")
    if mode == "sidecar" and result.get("restarts"):
        session.say(f"{result['restarts']} pods were restarted to place the sidecars, as in a cluster.")
    return int(ExitCode.FAILED) if result.get("failed") else 0


def _follow(session: Session, stream: Any) -> dict[str, Any]:
    while True:
        try:
            event = next(stream)
        except StopIteration as end:
            if not isinstance(end.value, dict):
                raise CallFailed(
                    ExitCode.FAILED, "control gave no result; see: ambient logs control"
                ) from None
            return end.value
        if session.verbose:
            session.say(_event(event))


def _event(event: Any) -> str:
    if not isinstance(event, Mapping):
        return str(event)
    return " ".join(f"{key}={value}" for key, value in event.items())


def _text(session: Session, texts: Sequence[str], mode: str, result: Mapping[str, Any]) -> str:
    pods = result.get("pods", [])
    if session.output == "name":
        return "".join(f"pod/{pod['name']}\n" for pod in pods)
    table = output.table(HEADERS, [_row(pod) for pod in pods]) if pods else ""
    if result.get("dry_run"):
        return table + consequences(pods) + forecast(texts, mode, result)
    return table + _connections(pods, str(result.get("existing", "keep"))) + summary(texts, mode, result)


def consequences(pods: Sequence[Mapping[str, Any]]) -> str:
    """What a dry run found: what is in the way, what stays plaintext, and the rules, once for all alike."""
    _good, warning, bad = marks()
    lines = []
    for pod in pods:
        for each in pod.get("findings", ()):
            hint = f" ({each['hint']})" if each.get("hint") else ""
            lines.append(f"{bad if each['blocks'] else warning} pod/{pod['name']}: {each['reason']}{hint}")
        kept = pod.get("established_connections_kept") or 0
        reset = pod.get("established_connections_reset") or 0
        if kept:
            lines.append(f"{warning} pod/{pod['name']}: {kept} established connections would stay plaintext")
        if reset:
            lines.append(f"{warning} pod/{pod['name']}: {reset} established connections would be reset")
        lines += [f"    {each}" for each in (pod.get("established_connections") or ())[:SHOWN]]
    for rules in dict.fromkeys(pod.get("rules", "") for pod in pods if pod.get("rules")):
        names = ", ".join(str(pod["name"]) for pod in pods if pod.get("rules") == rules)
        lines += [f"rules in {names}:", *(f"    {line}" for line in rules.splitlines())]
    return "".join(f"{line}\n" for line in lines)


def forecast(texts: Sequence[str], mode: str, result: Mapping[str, Any]) -> str:
    """The last line of a dry run."""
    good, _warning, bad = marks()
    blocked, pods = int(result.get("blocked") or 0), len(result.get("pods", []))
    what = (
        f"{blocked} of {pods} pods would not be enrolled"
        if blocked
        else f"nothing is in the way of {pods} pods"
    )
    mark, restarts = bad if blocked else good, result.get("restarts", 0)
    return f"{mark} {' '.join(texts)} ({mode}): {what}, {restarts} restarts\n"


def _connections(pods: Sequence[Mapping[str, Any]], existing: str) -> str:
    """The connections that were older than the enrollment, and what became of them."""
    fate = "kept, plaintext until they end" if existing == "keep" else "reset"
    lines = []
    for pod in pods:
        shown = pod.get("established_connections") or ()
        if shown:
            lines.append(f"pod/{pod['name']}: established connections {fate}:")
            lines += [f"    {each}" for each in shown[:SHOWN]]
            lines += [f"    and {len(shown) - SHOWN} more"] if len(shown) > SHOWN else []
    return "".join(f"{line}\n" for line in lines)


def _row(pod: Mapping[str, Any]) -> tuple[object, ...]:
    kept = pod.get("established_connections_kept", 0)
    spent = f"{float(pod.get('duration_ms') or 0):.0f}"
    shown = (pod.get("namespace"), pod.get("name"), pod.get("node"), bool(pod.get("enrolled")))
    return (*shown, pod.get("restarts", 0), kept, spent, pod.get("reason"))


def summary(texts: Sequence[str], mode: str, result: Mapping[str, Any]) -> str:
    """The line that says how it went: ``√ namespace/x enrolled (ambient): 7 pods, 0 restarts``."""
    good, _warning, bad = marks()
    failed = int(result.get("failed", 0))
    done = "released" if mode == "none" else f"enrolled ({mode})"
    pods, restarts = len(result.get("pods", [])), int(result.get("restarts", 0))
    tail = f", {failed} failed" if failed else ""
    counts = f"{pods} pod{'s'[: pods != 1]}, {restarts} restart{'s'[: restarts != 1]}{tail}"
    return f"{bad if failed else good} {' '.join(texts)} {done}: {counts}\n"
