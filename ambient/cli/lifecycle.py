"""``ambient up``, ``down`` and ``clean``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ambient.cli.objects import FILE_OPTION, as_wire, read_manifests
from ambient.cli.rundirs import abandoned
from ambient.cli.session import DeskCommand, Session, marks, pass_session
from ambient.errors import Unavailable

if TYPE_CHECKING:
    from ambient.model.manifest import Parsed

FABRIC = click.option("--fabric", type=click.Choice(["auto", "netns", "loopback"]), default="auto")
CNI = click.option("--cni", type=click.Choice(["bridge", "ptp", "macvlan", "builtin"]), default="builtin")


@click.command(cls=DeskCommand)
@FILE_OPTION
@click.option("--nodes", type=click.IntRange(1, 200), default=2, show_default=True)
@FABRIC
@CNI
@click.option("--detach", "-d", is_flag=True, help="Return when the mesh is ready; it goes on.")
@pass_session
def up(session: Session, /, files: tuple[str, ...], nodes: int, detach: bool, **how: Any) -> None:
    """Start a mesh from manifests (default: the Bookinfo example) and wait until it is ready."""
    from ambient.bench.scenario import bundled

    parsed = read_manifests(session, files or (str(bundled("bookinfo")),))
    began = time.monotonic()
    notes = bring_up(session, parsed, nodes, **how)
    for note in notes:
        session.say(f"Warning: {note}")
    body = {"run_dir": str(session.where), "seconds": round(time.monotonic() - began, 3), "nodes": nodes}
    session.emit("Mesh", body, lambda: f"{marks()[0]} mesh ready in {body['seconds']:.1f} s, {nodes} nodes\n")
    if not detach:
        _stay(session)


def bring_up(
    session: Session, parsed: Parsed, nodes: int, *, fabric: str = "auto", cni: str = "builtin"
) -> tuple[str, ...]:
    """Start the daemons, apply *parsed*, wait until its pods are ready; on any failure leave nothing.

    Returns:
        What the person at the desk should know, such as why the fabric is loopback.
    """
    from ambient.fabric import boot, clean

    where = str(session.where)
    session.say(f"Starting {nodes} nodes in {where} ...")
    started = boot.start(where, nodes=nodes, fabric=fabric, cni=cni)
    try:
        _fill(session, parsed)
    except BaseException:
        session.say("Taking it down again ...")
        clean.down(where)
        raise
    return started.notes


def _fill(session: Session, parsed: Parsed) -> None:
    with session.control() as control:
        control.call("apply", objects=as_wire(parsed))
        pods = len(control.call("get", kind="Pod", namespace=None, name=None))
    session.say(f"Applied {len(parsed.objects)} objects, waiting for {pods} pods ...")
    with session.fabric() as fabric:
        fabric.call("wait_ready", pods=pods, timeout=session.timeout)


def _stay(session: Session) -> None:
    """Keep the terminal until Ctrl-C or SIGTERM, or until somebody else takes the mesh down."""
    from ambient.fabric import clean

    session.say("Running; Ctrl-C takes it down. From another shell: ambient status, ambient down.")
    try:
        while clean.running(str(session.where)) is not None:
            time.sleep(0.5)
    except (KeyboardInterrupt, SystemExit):
        session.say("Taking it down ...")
        clean.down(str(session.where))
        raise
    session.say("The mesh has ended.")


@click.command(cls=DeskCommand)
@pass_session
def down(session: Session) -> None:
    """Stop the mesh and remove all it made."""
    from ambient.fabric import clean

    if not clean.down(str(session.where)):
        raise Unavailable(
            f"no mesh is running in {session.where}; what a crash left goes with: ambient clean"
        )
    session.emit("Down", {"run_dir": str(session.where)}, lambda: f"{marks()[0]} mesh stopped\n")


@click.command(cls=DeskCommand)
@pass_session
def clean(session: Session) -> None:
    """Remove a mesh in whatever state it is; nothing to remove is no error."""
    from ambient.fabric import clean as remove

    done = remove.clean(str(session.where))
    body = {"run_dir": str(session.where), "killed": done.killed, "removed": done.removed}
    body["benches"] = [str(path) for path in abandoned(session.where) if remove.clean(str(path)).anything]
    text = (
        f"{marks()[0]} removed what was left in {session.where}\n"
        if done.anything or body["benches"]
        else "Nothing to clean.\n"
    )
    session.emit("Clean", body, lambda: text)
