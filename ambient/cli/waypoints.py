"""``ambient waypoint``: istioctl's words and columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ambient.cli import output
from ambient.cli.session import DeskCommand, DeskGroup, Session, marks, pass_session

TRAFFIC = click.option(
    "--for", "traffic", type=click.Choice(["service", "workload", "all", "none"]), default="service"
)
NAME = click.option("--name", default="waypoint", show_default=True, help="Name of the waypoint.")
ENGINE = click.option("--engine", type=click.Choice(["ambient", "envoy"]), default="ambient")


@click.group(cls=DeskGroup)
def waypoint() -> None:
    """Manage the optional L7 proxy of a namespace."""


@waypoint.command(cls=DeskCommand)
@NAME
@TRAFFIC
@ENGINE
@click.option("--enroll-namespace", is_flag=True, help="Send the namespace's service traffic through it.")
@click.option("--wait/--no-wait", default=True, help="Return when it is programmed (default).")
@pass_session
def apply(session: Session, /, name: str, traffic: str, **options: Any) -> None:
    """Start a waypoint."""
    with session.control() as control:
        call = {"namespace": session.ns, "name": name, "traffic": traffic, **options}
        result = control.call("waypoint_apply", **call)
    body = result if isinstance(result, dict) else {"namespace": session.ns, "name": name}
    session.emit("Waypoint", body, lambda: _applied(session, name, bool(options["enroll_namespace"])))


def _applied(session: Session, name: str, enrolled: bool) -> str:
    good = marks()[0]
    tail = f'{good} namespace {session.ns} labeled with "istio.io/use-waypoint: {name}"\n' if enrolled else ""
    return f"{good} waypoint {session.ns}/{name} applied\n{tail}"


@waypoint.command(cls=DeskCommand)
@NAME
@TRAFFIC
@pass_session
def generate(session: Session, name: str, traffic: str) -> None:
    """Print the Gateway that `apply` would make."""
    value = gateway(session.ns, name, traffic)
    text = output.to_json(value) if session.output == "json" else output.to_yaml(value)
    click.echo(text, nl=False)


def gateway(namespace: str, name: str, traffic: str) -> dict[str, Any]:
    """The Kubernetes object that stands for a waypoint."""
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace, "labels": {"istio.io/waypoint-for": traffic}},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        },
    }


@waypoint.command("list", cls=DeskCommand)
@pass_session
def list_(session: Session) -> None:
    """List waypoints."""
    items = _waypoints(session)
    if not items and not session.structured:
        session.say("No waypoints found.")
        return
    headers = ("NAMESPACE", "NAME", "REVISION", "TRAFFIC TYPE", "PROGRAMMED")
    rows = [(one["namespace"], one["name"], "default", _traffic(one), _programmed(one)) for one in items]
    session.emit("WaypointList", {"items": items}, lambda: output.table(headers, rows))


@waypoint.command(cls=DeskCommand)
@click.argument("name", required=False)
@pass_session
def status(session: Session, name: str | None) -> int:
    """Show whether waypoints are programmed; exit 1 if one is not."""
    items = [one for one in _waypoints(session) if name in (None, one["name"])]
    if not items:
        session.say("No waypoints found.")
        return 1
    headers = ("NAMESPACE", "NAME", "STATUS", "TYPE", "REASON", "MESSAGE")
    rows = [_status(one) for one in items]
    session.emit("WaypointList", {"items": items}, lambda: output.table(headers, rows))
    return 0 if all(_programmed(one) == "True" for one in items) else 1


@waypoint.command(cls=DeskCommand)
@click.argument("names", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All waypoints of the namespace.")
@pass_session
def delete(session: Session, names: Sequence[str], every: bool) -> None:
    """Take waypoints away; traffic goes direct again."""
    if every:
        names = [one["name"] for one in _waypoints(session)]
    elif not names:
        names = ["waypoint"]
    with session.control() as control:
        for name in names:
            control.call("waypoint_delete", namespace=session.ns, name=name)
    body = {"items": [{"namespace": session.ns, "name": name} for name in names]}
    good = marks()[0]
    session.emit(
        "WaypointList",
        body,
        lambda: "".join(f"{good} waypoint {session.ns}/{name} deleted\n" for name in names),
    )


def _waypoints(session: Session) -> list[dict[str, Any]]:
    with session.control() as control:
        found = control.call("waypoint_list")
    items = found.get("items", []) if isinstance(found, dict) else found
    everywhere = session.all_namespaces or session.namespace is None
    return [one for one in items if everywhere or one["namespace"] == session.ns]


def _traffic(one: Mapping[str, Any]) -> str:
    return str(one.get("traffic") or one.get("traffic_type") or "service")


def _programmed(one: Mapping[str, Any]) -> str:
    return "True" if one.get("programmed") else "False"


def _status(one: Mapping[str, Any]) -> tuple[object, ...]:
    fine = bool(one.get("programmed"))
    reason = one.get("reason") or ("Programmed" if fine else "Pending")
    message = one.get("message") or ("Resource programmed" if fine else "its pod is not ready")
    return (one["namespace"], one["name"], _programmed(one), "Programmed", reason, message)
