"""``ambient describe``: capture, HBONE, waypoint, policies; and why not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from ambient.cli import kinds, output
from ambient.cli.session import DeskCommand, Session, marks, pass_session
from ambient.errors import ConfigError

_WIDTH = 14


@click.command(cls=DeskCommand)
@click.argument("target")
@pass_session
def describe(session: Session, target: str) -> None:
    """Say what happens to a connection to TARGET (pod/NAME, svc/NAME), and why a pod is not enrolled."""
    try:
        kind, name = kinds.parse_target(target, "Pod")
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc
    if kind not in ("Pod", "Service"):
        raise click.UsageError(f"cannot describe {target!r}; give pod/NAME or svc/NAME")
    with session.control() as control:
        found = control.call("describe", kind=kind, namespace=session.ns, name=name)
    session.emit("Description", found, lambda: "".join(f"{line}\n" for line in _lines(found)))


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    yield from _facts(found)
    yield ""
    good, warning, _bad = marks()
    for step in found.get("way", ()):
        yield f"{good if step['holds'] else warning} {step['step']:<{_WIDTH - 2}}{step['detail']}"
    if endpoints := found.get("endpoints"):
        yield ""
        rows = [
            (each["pod"], each["node"], each["protocol"], each["enrolled"], each["reason"])
            for each in endpoints
        ]
        headers = ("ENDPOINT", "NODE", "PROTOCOL", "ENROLLED", "WHY NOT")
        yield output.table(headers, rows).rstrip("\n")


def _facts(found: Mapping[str, Any]) -> Iterator[str]:
    yield _fact(str(found["object"]).capitalize(), f"{found['namespace']}/{found['name']}")
    for title, name in (("Node", "node"), ("Host name", "hostname"), ("Identity", "identity")):
        if value := found.get(name):
            yield _fact(title, str(value))
    for title, name in (("Addresses", "addresses"), ("Services", "services")):
        if values := found.get(name):
            yield _fact(title, ", ".join(map(str, values)))
    if ports := found.get("ports"):
        yield _fact("Ports", ", ".join(f"{each['port']} -> {each['target_port']}" for each in ports))
    if found["object"] == "pod":
        why = f" ({found['reason']})" if found.get("reason") else ""
        yield _fact("Enrolled", f"{'yes' if found['enrolled'] else 'no'}, {found['state']}{why}")
        yield _fact("Plaintext in", "refused" if found["strict"] else "accepted")
    for name, values in sorted(found.get("exclusions", {}).items()):
        yield _fact("Left alone", f"{name.replace('_', ' ')} {', '.join(map(str, values))}")


def _fact(title: str, value: str) -> str:
    return f"{title + ':':<{_WIDTH}}{value}"
