"""``ambient ztunnel restart``: a new process for a node's ztunnel, and nobody notices."""

from __future__ import annotations

import click

from ambient.cli import output
from ambient.cli.session import DeskCommand, Session, marks, pass_session


@click.command(cls=DeskCommand)
@click.option("--node", "names", multiple=True, help="Whose ztunnel; may be given more than once.")
@click.option("--all", "everywhere", is_flag=True, help="Every node's, one after the other.")
@pass_session
def restart(session: Session, /, names: tuple[str, ...], everywhere: bool) -> None:
    """Replace a node's ztunnel while it serves.

    The new process takes over the listeners, so no connection is refused. The old one keeps its
    connections until they end, and then goes.
    """
    if bool(names) == everywhere:
        raise click.UsageError("say either --node NODE or --all")
    with session.fabric() as fabric:
        nodes = names or tuple(str(one["name"]) for one in fabric.call("status")["nodes"])
        done = [fabric.call("restart_ztunnel", node=node) for node in nodes]
    rows = [(one["node"], one["old_pid"], one["pid"], f"{one['seconds']:.2f}s") for one in done]
    session.emit(
        "ZtunnelRestart",
        {"items": done},
        lambda: output.table(("NODE", "OLD PID", "NEW PID", "TOOK"), rows) + f"{marks()[0]} serving\n",
    )
