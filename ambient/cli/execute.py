"""``ambient exec``: any command inside a pod, from any shell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import click

from ambient.cli import kinds
from ambient.cli.session import DeskCommand, Session, pass_session
from ambient.errors import Unavailable
from ambient.wire.admin import CallFailed, ExitCode


@click.command("exec", cls=DeskCommand)
@click.argument("pod")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("-c", "--container", help="Which container's environment; default: the first one's.")
@pass_session
def exec_(session: Session, pod: str, command: tuple[str, ...], container: str | None) -> None:
    """Run COMMAND inside POD: `ambient exec client -n bookinfo -- curl http://reviews:9080/`.

    POD is a pod's name, or deploy/NAME for the first running pod of a Deployment.
    """
    from ambient.fabric import enter

    pid = pod_pid(session, pod)
    argv = enter.command(init_pid(session), pid, command)
    # This process has nothing more to do: signals, terminal and exit code are the command's.
    os.execvp(argv[0], argv)


def init_pid(session: Session) -> int:
    """Host PID of the mesh's first process.

    Raises:
        Unavailable: no mesh runs here.
    """
    from ambient.fabric import clean

    record = clean.running(str(session.where))
    if record is None:
        raise Unavailable(f"no mesh is running in {session.where}; start one with: ambient up")
    return record.init_pid


def pod_pid(session: Session, target: str) -> int:
    """Host PID of a process of the pod that *target* means.

    Raises:
        CallFailed: no such pod, or it does not run.
        ConfigError: *target* is of a kind that has no pods.
    """
    kind, name = kinds.parse_target(target, "Pod")
    with session.control() as control:
        pods = control.call("get", kind="Pod", namespace=session.ns, name=None)
    found = kinds.pods_of(pods, kind, name)
    if not found:
        raise CallFailed(
            ExitCode.FAILED, f"no pod {target!r} in namespace {session.ns}; see: ambient get pods -A"
        )
    return pid_of(found[0])


def pid_of(pod: Mapping[str, Any]) -> int:
    """The host PID in the pod's status.

    Raises:
        CallFailed: it has none yet.
    """
    status = pod.get("status", {})
    pid = int((status.get("ambient") or {}).get("pid") or 0)
    if not pid:
        phase = status.get("phase", "Unknown")
        raise CallFailed(
            ExitCode.FAILED, f"pod {pod['metadata']['name']!r} is {phase}; wait or see: ambient logs"
        )
    return pid
