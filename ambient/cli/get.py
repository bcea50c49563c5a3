"""``ambient get KIND [NAME]``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from ambient.cli import kinds, output
from ambient.cli.session import DeskCommand, Session, pass_session
from ambient.errors import ConfigError
from ambient.wire.admin import CallFailed, ExitCode


@click.command(cls=DeskCommand)
@click.argument("kind")
@click.argument("name", required=False)
@pass_session
def get(session: Session, kind: str, name: str | None) -> None:
    """List objects of KIND, or one of them: `get pods -n bookinfo`, `get svc/reviews`."""
    if name is None and "/" in kind:
        kind, name = kind.split("/", 1)
    known = asked_kind(kind)
    items = fetch(session, known, name)
    if name is not None:
        _show_one(session, known, items)
    else:
        _show_list(session, known, items)


def asked_kind(text: str) -> str:
    """The kind that was typed.

    Raises:
        UsageError: there is no such kind.
    """
    try:
        return kinds.kind_of(text)
    except ConfigError as exc:
        raise click.UsageError(str(exc)) from exc


def fetch(session: Session, kind: str, name: str | None = None) -> list[Mapping[str, Any]]:
    """Ask control for the objects the options name.

    Raises:
        CallFailed: *name* is given and does not exist.
    """
    namespace = None if kind in kinds.CLUSTER_SCOPED else session.scope
    with session.control() as control:
        if kind == "Workload":
            found = control.call("dump")["workloads"]
            found = [one for one in found if namespace is None or one.get("namespace") == namespace]
        else:
            found = control.call("get", kind=kind, namespace=namespace, name=name)
    if name is not None:
        found = [one for one in found if kinds.name_of(one) == name]
        if not found:
            where = f"{namespace or 'the mesh'}; see: ambient get {kinds.ALIASES[kind][1]} -A"
            raise CallFailed(ExitCode.FAILED, f"no {kind.lower()} {name!r} in {where}")
    return [one for one in found if kinds.selects(session.selector, labels_of(one))]


def labels_of(item: Mapping[str, Any]) -> Mapping[str, str]:
    """The object's labels."""
    found: Mapping[str, str] = item.get("metadata", {}).get("labels") or {}
    return found


def _show_one(session: Session, kind: str, items: Sequence[Mapping[str, Any]]) -> None:
    if session.structured and items:
        # An object that Kubernetes knows keeps its own apiVersion, so that it can be applied again.
        own = items[0] if "apiVersion" in items[0] else output.document(kind, items[0])
        session.emit_document(own, str)
        return
    _show_list(session, kind, items)


def _show_list(session: Session, kind: str, items: Sequence[Mapping[str, Any]]) -> None:
    if not items and not session.structured:
        place = f" in {session.ns} namespace" if session.scope and kind not in kinds.CLUSTER_SCOPED else ""
        session.say(f"No resources found{place}.")
        return
    session.emit("List", {"items": list(items)}, lambda: _text(session, kind, items))


def _text(session: Session, kind: str, items: Sequence[Mapping[str, Any]]) -> str:
    if session.output == "name":
        return "".join(f"{kind.lower()}/{kinds.name_of(item)}\n" for item in items)
    wide = session.output == "wide"
    headers, body = kinds.rows(kind, items, time.time(), wide=wide, namespaces=session.all_namespaces)
    return output.table(headers, body)
