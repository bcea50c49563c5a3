"""``ambient redirect show``: the rules in a pod's namespace, as they should be and as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from ambient.cli.session import DeskCommand, DeskGroup, Session, marks, pass_session
from ambient.wire.admin import CallFailed, ExitCode

_SIGNS = {"+": "green", "-": "red", "@": "cyan"}


@click.group(cls=DeskGroup)
def redirect() -> None:
    """Look at the redirection of pods."""


@redirect.command(cls=DeskCommand)
@click.argument("pod")
@click.option("--diff", is_flag=True, help="Compare with the kernel; exit 1 if it differs.")
@pass_session
def show(session: Session, /, pod: str, diff: bool) -> int:
    """Print the rules of POD in nft's syntax; of a pod that is not enrolled, those that it would get."""
    name = pod.removeprefix("pod/")
    node = node_of(session, name)
    shown = ask_agent(session, node, name)
    body = {"namespace": session.ns, "pod": name, "node": node, **shown, "same": not shown["diff"]}
    session.emit("Redirection", body, lambda: _text(session, name, body, diff=diff))
    return int(ExitCode.FAILED) if diff and shown["diff"] else 0


def node_of(session: Session, name: str) -> str:
    """The node of a pod.

    Raises:
        CallFailed: no such pod.
    """
    with session.control() as control:
        found = control.call("get", kind="Pod", namespace=session.ns, name=name)
    if not found:
        raise CallFailed(
            ExitCode.FAILED, f"no pod {name!r} in namespace {session.ns}; see: ambient get pods -A"
        )
    return str(found[0]["spec"]["nodeName"])


def ask_agent(session: Session, node: str, name: str) -> dict[str, Any]:
    """What the node's agent says of the pod."""
    from ambient.engine.blocking import BlockingAdminClient
    from ambient.errors import Unavailable
    from ambient.fabric.nodes import cni_path

    try:
        agent = BlockingAdminClient.connect(session.where / cni_path("", node).lstrip("/"), session.timeout)
    except Unavailable as exc:
        raise Unavailable(f"the agent of {node} does not answer; see: ambient logs agent/{node}") from exc
    with agent:
        shown: dict[str, Any] = agent.call("redirect_show", namespace=session.ns, pod=name)
    return shown


def _text(session: Session, name: str, body: Mapping[str, Any], *, diff: bool) -> str:
    if not diff:
        state = body["state"]
        head = f"# {session.ns}/{name} on {body['node']}: {state}"
        note = "" if state in ("enrolled", "draining") else "; enrolled, it would have"
        return "\n".join([f"{head}{note}", *body["plan"], ""])
    if not body["diff"]:
        return f"{marks()[0]} {session.ns}/{name}: the kernel has what it should ({body['state']})\n"
    return "".join(f"{line}\n" for line in colored(body["diff"]))


def colored(lines: Sequence[str]) -> list[str]:
    """A difference as people are used to see one; click takes the colours away where nobody wants them."""
    return [click.style(line, fg=_SIGNS.get(line[:1])) for line in lines]
