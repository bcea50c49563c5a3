"""``ambient ztunnel workload|service|policy|certificate|connections|all|log``: istioctl's ztunnel-config."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import urlencode

import click

from ambient.cli import output
from ambient.cli import ztunnel_columns as columns
from ambient.cli import ztunnel_desk as desk
from ambient.cli.session import DeskCommand, Session, pass_session

F = TypeVar("F", bound=Callable[..., Any])
Items = Iterable[Mapping[str, Any]]

FILE = click.option("-f", "--file", help="A config dump to read instead of asking; - is standard input.")
NODE = click.option("--node", default="", help="Whose ztunnel to ask.")


def _namespaced(option: str, text: str) -> Callable[[F], F]:
    return click.option(option, "wanted", default="", help=text)


@click.command(cls=DeskCommand)
@FILE
@click.option("--node", default="", help="Only workloads on this node.")
@click.option("--address", default="", help="Only the workload with this address.")
@_namespaced("--workload-namespace", "Only workloads of this namespace.")
@pass_session
def workload(session: Session, /, file: str | None, node: str, address: str, wanted: str) -> None:
    """List the workloads that ztunnel knows."""
    want = columns.Filters(namespace=_namespace(session, wanted), node=node, address=address)
    (dump,) = desk.dumps(session, file, "", everywhere=False)
    found = columns.workloads(dump, want)
    if node and file is None and not found:
        desk.nodes(session, node)  # Perhaps there is no such node at all.
    _emit(session, "ZtunnelWorkloads", found, columns.WORKLOAD, map(columns.workload_row, found))


@click.command(cls=DeskCommand)
@FILE
@NODE
@click.option("--address", default="", help="Only the service with this virtual address.")
@_namespaced("--service-namespace", "Only services of this namespace.")
@pass_session
def service(session: Session, /, file: str | None, node: str, address: str, wanted: str) -> None:
    """List the services that ztunnel knows, and how many of their endpoints are healthy."""
    want = columns.Filters(namespace=_namespace(session, wanted), address=address)
    (dump,) = desk.dumps(session, file, node, everywhere=False)
    found = columns.services(dump, want)
    _emit(session, "ZtunnelServices", found, columns.SERVICE, map(columns.service_row, found))


@click.command(cls=DeskCommand)
@FILE
@NODE
@_namespaced("--policy-namespace", "Only policies of this namespace.")
@pass_session
def policy(session: Session, /, file: str | None, node: str, wanted: str) -> None:
    """List the policies that ztunnel enforces."""
    (dump,) = desk.dumps(session, file, node, everywhere=False)
    found = columns.policies(dump, columns.Filters(namespace=_namespace(session, wanted)))
    _emit(session, "ZtunnelPolicies", found, columns.POLICY, map(columns.policy_row, found))


@click.command(cls=DeskCommand)
@FILE
@NODE
@pass_session
def certificate(session: Session, /, file: str | None, node: str) -> None:
    """List the certificates that each node's ztunnel holds for its pods."""
    want = columns.Filters(namespace=session.namespace or "")
    dumps = desk.dumps(session, file, node, everywhere=True)
    found = [each for dump in dumps for each in columns.certificates(dump, want)]
    now = datetime.now(UTC)
    rows = [row for each in found for row in columns.certificate_rows(each, now)]
    _emit(session, "ZtunnelCertificates", found, columns.CERTIFICATE, rows)


@click.command(cls=DeskCommand)
@FILE
@NODE
@click.option("--direction", type=click.Choice(["inbound", "outbound"]), help="Only this way.")
@click.option("--raw", is_flag=True, help="Addresses, not names.")
@_namespaced("--workload-namespace", "Only connections of this namespace's workloads.")
@pass_session
def connections(
    session: Session, /, file: str | None, node: str, direction: str | None, raw: bool, wanted: str
) -> None:
    """List the connections that each node's ztunnel carries now."""
    want = columns.Filters(namespace=_namespace(session, wanted), direction=direction or "")
    found, rows = [], []
    for dump in desk.dumps(session, file, node, everywhere=True):
        names = None if raw else columns.Names.of(dump)
        open_ = list(columns.connections(dump, want))
        found += open_
        rows += [columns.connection_row(each, names) for each in open_]
    _emit(session, "ZtunnelConnections", found, columns.CONNECTION, rows)


@click.command(cls=DeskCommand)
@FILE
@NODE
@pass_session
def all_(session: Session, /, file: str | None, node: str) -> None:
    """Print all tables of one ztunnel; with -o json the whole dump, which -f reads again."""
    (dump,) = desk.dumps(session, file, node, everywhere=False)
    session.emit("ZtunnelDump", dump, functools.partial(_everything, dump))


def _everything(dump: Mapping[str, Any]) -> str:
    want, now, names = columns.Filters(), datetime.now(UTC), columns.Names.of(dump)
    certificates = (
        row for each in columns.certificates(dump, want) for row in columns.certificate_rows(each, now)
    )
    open_ = (columns.connection_row(each, names) for each in columns.connections(dump, want))
    tables = (
        output.table(columns.WORKLOAD, map(columns.workload_row, columns.workloads(dump, want))),
        output.table(columns.SERVICE, map(columns.service_row, columns.services(dump, want))),
        output.table(columns.POLICY, map(columns.policy_row, columns.policies(dump, want))),
        output.table(columns.CERTIFICATE, certificates),
        output.table(columns.CONNECTION, open_),
    )
    return "\n".join(tables)


@click.command(cls=DeskCommand)
@NODE
@click.option("--level", help="What to log from now on: access:debug,info")
@click.option("-r", "--reset", is_flag=True, help="Back to what was logged at the start.")
@pass_session
def log(session: Session, /, node: str, level: str | None, reset: bool) -> None:
    """Show what each node's ztunnel logs, or change it: LEVEL, or SCOPE:LEVEL with commas between."""
    if level is not None and reset:
        raise click.UsageError("say either --level or --reset")
    query = {"reset": "true"} if reset else {"level": level} if level is not None else {}
    path = f"/logging?{urlencode(query)}" if query else "/logging"
    items = []
    for each in desk.nodes(session, node):
        text = desk.ask(session, each, path, "POST" if query else "GET")
        items.append({"node": each, "level": text.strip().removeprefix("current log level is ")})
    rows = [(each["node"], each["level"]) for each in items]
    _emit(session, "ZtunnelLogLevels", items, ("NODE", "LEVEL"), rows)


def _namespace(session: Session, wanted: str) -> str:
    return wanted or ("" if session.all_namespaces else session.namespace or "")


def _emit(
    session: Session, kind: str, items: Items, headers: Sequence[str], rows: Iterable[output.Row]
) -> None:
    session.emit(kind, {"items": list(items)}, lambda: output.table(headers, rows))
