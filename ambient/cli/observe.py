"""``ambient status`` and ``ambient logs``."""

from __future__ import annotations

import time
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from ambient.cli import kinds, output
from ambient.cli.session import DeskCommand, Session, pass_session
from ambient.errors import ConfigError, Unavailable
from ambient.wire.admin import CallFailed, ExitCode

# tail -f of coreutils looks once a second; a person who waits for a line sees a fifth of that as at once.
FOLLOW_SECONDS = 0.2
DAEMONS = ("control", "agent", "ztunnel", "waypoint", "sidecar")


@click.command(cls=DeskCommand)
@pass_session
def status(session: Session) -> None:
    """Show components, nodes, what is enrolled, and when certificates end."""
    with session.fabric() as fabric:
        body = dict(fabric.call("status"))
    try:
        with session.control() as control:
            found = control.call("status")
            pods = control.call("get", kind="Pod", namespace=None, name=None)
    except Unavailable:
        # What still runs can be told all the same.
        body |= {"run_dir": str(session.where), "enrolled": [], "troubled": []}
        session.emit("Status", body, lambda: _text(body))
        raise
    body = {
        **found,
        **body,
        "run_dir": str(session.where),
        "enrolled": enrolled(pods),
        "troubled": troubled(pods),
    }
    session.emit("Status", body, lambda: _text(body))


def enrolled(pods: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per namespace: how many pods there are, and how many in which mode."""
    counts: dict[str, dict[str, int]] = {}
    for pod in pods:
        state = pod.get("status", {}).get("ambient", {}) or {}
        one = counts.setdefault(
            str(pod["metadata"].get("namespace", "")),
            {"pods": 0, "ambient": 0, "sidecar": 0, "attested": 0, "unattested": 0, "lost": 0},
        )
        one["pods"] += 1
        if (word := str(state.get("attestation") or "")) in one:
            one[word] += 1
        mode = state.get("mode")
        if mode == "sidecar" or (mode == "ambient" and state.get("enrolled")):
            one[str(mode)] += 1
    return [{"namespace": name, **one} for name, one in sorted(counts.items())]


def troubled(pods: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pods of which more is to be told than that all is well.

    They are not enrolled although they should be, lost, repaired, or have plaintext left.
    """
    found = []
    for pod in pods:
        state = pod.get("status", {}).get("ambient", {}) or {}
        words = {
            name: state.get(name)
            for name in ("attestation", "state", "repairs", "plaintext_connections", "reason")
        }
        if (
            words["attestation"] in ("lost", "unattested")
            or words["state"] == "failed"
            or words["repairs"]
            or words["plaintext_connections"]
        ):
            named = {"namespace": pod["metadata"].get("namespace", ""), "name": pod["metadata"]["name"]}
            found.append({**named, **words})
    return found


def _attestation(one: Mapping[str, Any]) -> str:
    """``5 attested, 1 lost``; "" where nobody is captured."""
    words = ("attested", "unattested", "lost")
    return ", ".join(f"{one[word]} {word}" for word in words if one.get(word))


def _text(body: Mapping[str, Any]) -> str:
    processes = [one for one in body.get("processes", []) if one.get("role") in DAEMONS]
    how = "rootless" if body.get("rootless") else "root"
    first = (
        f"Mesh: {body.get('fabric', '?')} ({how}), {len(body.get('nodes', []))} nodes, in {body['run_dir']}\n"
    )
    components = output.table(
        ("COMPONENT", "NODE", "POD", "PID", "RESTARTS", "AGE"), map(_component, processes)
    )
    spaces = [
        (one["namespace"], one["pods"], one["ambient"], one["sidecar"], _attestation(one))
        for one in body["enrolled"]
    ]
    text = first + "\n" + components
    if spaces:
        text += "\n" + output.table(("NAMESPACE", "PODS", "AMBIENT", "SIDECAR", "ATTESTATION"), spaces)
    if troubled := body.get("troubled"):
        trouble = [
            (
                f"{one['namespace']}/{one['name']}",
                one["attestation"] or one["state"],
                one["repairs"],
                one["plaintext_connections"],
                one["reason"],
            )
            for one in troubled
        ]
        text += "\n" + output.table(("POD", "ATTESTATION", "REPAIRS", "PLAINTEXT", "REASON"), trouble)
    if departed := body.get("departed"):
        gone = [(f"{one['namespace']}/{one['name']}", one["path"], one["reason"]) for one in departed]
        text += "\n" + output.table(("VANISHED", "WAITED FOR AT", "REASON"), gone)
    certificates = body.get("certificates")
    if isinstance(certificates, list) and certificates:
        rows = [(c.get("identity"), c.get("holder", c.get("node")), c.get("not_after")) for c in certificates]
        text += "\n" + output.table(("CERTIFICATE", "HELD BY", "NOT AFTER"), rows)
    return text


def _component(one: Mapping[str, Any]) -> tuple[object, ...]:
    since = output.age(time.time() - float(one.get("started") or time.time()))
    role, node, pod = one.get("role"), one.get("node"), one.get("pod")
    return (one.get("name") or role, node, pod, one.get("pid"), one.get("restarts", 0), since)


@click.command(cls=DeskCommand)
@click.argument("what")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what comes.")
@click.option("-c", "--container", help="Which container of the pod.")
@click.option("--tail", type=int, default=-1, help="Only the last N lines.")
@pass_session
def logs(session: Session, what: str, follow: bool, container: str | None, tail: int) -> None:
    """Print the log of WHAT: a pod, or a component such as control, ztunnel/node-1, agent/node-2."""
    paths = log_files(session, what, container)
    if follow:
        for line in _follow(paths, tail):
            click.echo(line, nl=False)
        return
    for path in paths:
        click.echo("".join(last(path.read_text(errors="replace").splitlines(keepends=True), tail)), nl=False)


def log_files(session: Session, what: str, container: str | None) -> list[Path]:
    """The files that hold the log of *what*.

    Raises:
        CallFailed: nothing of that name has a log.
    """
    with session.fabric() as fabric:
        processes = fabric.call("status")["processes"]
    names = _pods_meant(session, what) or {what}
    folder = session.where / "logs"
    found = [
        path
        for one in processes
        if _is_meant(one, names, session.namespace, container) and (path := _path(folder, one)) is not None
    ]
    if not found:
        raise CallFailed(
            ExitCode.FAILED, f"no log of {what!r}; see the names in: ambient status, ambient get pods -A"
        )
    return sorted(set(found))


def _pods_meant(session: Session, what: str) -> set[str]:
    """The names of the pods that ``pod/NAME`` or ``deploy/NAME`` means; none if *what* has another form."""
    alias, slash, name = what.partition("/")
    if slash and alias in kinds.ALIASES["Pod"]:
        return {name}
    if not slash or alias not in kinds.ALIASES["Deployment"]:
        return set()
    with session.control() as control:
        pods = control.call("get", kind="Pod", namespace=session.ns, name=None)
    return {kinds.name_of(pod) for pod in kinds.pods_of(pods, "Deployment", name)}


def _is_meant(
    one: Mapping[str, Any], names: Container[str], namespace: str | None, container: str | None
) -> bool:
    role, node, pod = str(one.get("role", "")), str(one.get("node", "")), str(one.get("pod") or "")
    space, _, short = pod.rpartition("/")
    if container is not None and one.get("container") != container:
        return False
    if namespace is not None and space and space != namespace:
        return False
    return any(name in names for name in (str(one.get("name", "")), role, f"{role}/{node}", pod, short))


def _path(folder: Path, one: Mapping[str, Any]) -> Path | None:
    if log := one.get("log"):
        return Path(str(log))
    name = str(one.get("name", ""))
    tries = [
        folder / f"{name}.log",
        folder / f"{name.replace('/', '_')}.log",
        folder / f"{name.replace('/', '-')}.log",
    ]
    return next((path for path in tries if path.exists()), None)


def last(lines: Sequence[str], count: int) -> Sequence[str]:
    """The last *count* lines; all of them if *count* is negative."""
    if count < 0:
        return lines
    return lines[len(lines) - min(count, len(lines)) :]


def _follow(paths: Sequence[Path], tail: int) -> Iterator[str]:
    if not paths:
        raise ConfigError("nothing to follow")
    files = [path.open(errors="replace") for path in paths]
    for file in files:
        yield from last(file.readlines(), tail)
    while True:
        fresh = [line for file in files for line in file.readlines()]
        yield from fresh
        if not fresh:
            time.sleep(FOLLOW_SECONDS)
