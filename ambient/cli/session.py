"""What every command shares: the global options, where the mesh is, and how to speak.

Floor 6. The global options may stand before or after the command, as with kubectl; whichever is read
last wins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ambient.cli import output

if TYPE_CHECKING:
    from ambient.engine.blocking import BlockingAdminClient

FORMATS = ("table", "wide", "json", "yaml", "name")
# Where the control plane and the supervisor listen, in the run directory.
CONTROL, SUPERVISOR = "control.sock", "fabric.sock"
CONTROL_GONE = "traffic goes on, but the control plane is gone and nothing can be changed"
# kubectl's default, where no -n is given.
DEFAULT_NAMESPACE = "default"
# Long enough for a sidecar switch of a big namespace on a slow machine; picked, not measured.
DEFAULT_TIMEOUT = 120.0


@dataclass
class Session:
    """The global options of one invocation."""

    run_dir: Path | None = None
    namespace: str | None = None
    all_namespaces: bool = False
    selector: str = ""
    output: str = "table"
    timeout: float = DEFAULT_TIMEOUT
    color: str = "auto"
    verbose: int = 0

    @property
    def where(self) -> Path:
        """The run directory of the mesh that is meant."""
        from ambient.fabric import rundir

        return (
            self.run_dir.absolute() if self.run_dir else Path(rundir.default_path(os.environ, os.geteuid()))
        )

    @property
    def ns(self) -> str:
        """The namespace that is meant."""
        return self.namespace or DEFAULT_NAMESPACE

    @property
    def scope(self) -> str | None:
        """The namespace to list, None for all of them."""
        return None if self.all_namespaces else self.ns

    @property
    def structured(self) -> bool:
        """Whether stdout carries one document."""
        return self.output in ("json", "yaml")

    def control(self) -> BlockingAdminClient:
        """Connect to the control plane; the caller closes it."""
        return self._connect(CONTROL)

    def fabric(self) -> BlockingAdminClient:
        """Connect to the supervisor; the caller closes it."""
        return self._connect(SUPERVISOR)

    def _has_supervisor(self) -> bool:
        from ambient.engine.blocking import BlockingAdminClient
        from ambient.errors import Unavailable

        try:
            BlockingAdminClient.connect(self.where / SUPERVISOR, self.timeout).close()
        except Unavailable:
            return False
        return True

    def _connect(self, name: str) -> BlockingAdminClient:
        from ambient.engine.blocking import BlockingAdminClient
        from ambient.errors import Unavailable

        try:
            return BlockingAdminClient.connect(self.where / name, self.timeout)
        except Unavailable as exc:
            if name == CONTROL and self._has_supervisor():
                raise Unavailable(f"{CONTROL_GONE} in {self.where}: ambient down, then up") from exc
            raise Unavailable(f"no mesh is running in {self.where}; start one with: ambient up") from exc

    def emit(self, kind: str, body: Mapping[str, Any], text: Callable[[], str]) -> None:
        """Print *body* as one document, or *text* for people."""
        self.emit_document(output.document(kind, body), text)

    def emit_document(self, value: Mapping[str, Any], text: Callable[[], str]) -> None:
        """Print *value* unchanged as one document, or *text* for people."""
        match self.output:
            case "json":
                click.echo(output.to_json(value), nl=False)
            case "yaml":
                click.echo(output.to_yaml(dict(value)), nl=False)
            case _:
                click.echo(text(), nl=False)

    def say(self, text: str) -> None:
        """Progress and warnings: stderr, so that stdout stays data."""
        click.echo(text, err=True)


def wants_color(choice: str, environ: Mapping[str, str]) -> bool | None:
    """Return click's answer: True, False, or None for "if it is a terminal"."""
    if choice != "auto":
        return choice == "always"
    # click itself does not know NO_COLOR.
    quiet = environ.get("NO_COLOR", "") != "" or environ.get("TERM") == "dumb"
    return False if quiet else None


def marks() -> tuple[str, str, str]:
    """Success, warning, failure: linkerd's signs, or ASCII where stdout cannot show them."""
    encoding = (getattr(sys.stdout, "encoding", "") or "").lower().replace("-", "")
    return ("√", "‼", "×") if encoding == "utf8" else ("[ok]", "[warn]", "[fail]")


class DurationType(click.ParamType[float]):
    """``15s``, ``5m``, ``1m30s``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the text once; click may hand back what was read already."""
        from ambient.errors import ConfigError

        if isinstance(value, int | float):
            return float(value)
        try:
            return output.parse_duration(value)
        except ConfigError as exc:
            self.fail(str(exc), param, ctx)


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    session = ctx.ensure_object(Session)
    if value is not None and param.name is not None:
        setattr(session, param.name, value)
    if param.name == "color":
        ctx.color = wants_color(session.color, os.environ)


def _global(*names: str, **attrs: Any) -> click.Option:
    return click.Option(names, expose_value=False, callback=_remember, default=None, **attrs)


def global_options() -> list[click.Parameter]:
    """The options that every command takes."""
    return [
        _global("-n", "--namespace", help="Namespace to use."),
        _global("-A", "--all-namespaces", is_flag=True, help="List over all namespaces."),
        _global("-l", "--selector", help="Only objects with these labels: k=v,k2!=v2."),
        _global("-o", "--output", type=click.Choice(FORMATS), help="How to print the result."),
        _global("--timeout", type=DurationType(), help="How long to wait: 15s, 5m."),
        _global("--color", type=click.Choice(["auto", "always", "never"]), help="NO_COLOR is obeyed too."),
        _global("-v", "--verbose", count=True, help="Say more on stderr."),
        _global("--run-dir", type=click.Path(path_type=Path), help="Where the mesh lives."),
    ]


class DeskCommand(click.Command):
    """A command that also takes the global options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())


class DeskGroup(click.Group):
    """A group of such commands; it takes the options, too."""

    command_class = DeskCommand

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())


pass_session = click.make_pass_decorator(Session, ensure=True)
