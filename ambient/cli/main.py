"""``ambient``: the front door. Finds the command, runs it, and turns every failure into one line and a code.

Floor 6. Commands are imported when they are called: a shell completes and a script asks a hundred times.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

import click

from ambient.cli.lazy import LazyGroup
from ambient.cli.output import one_line
from ambient.cli.session import Session

OK, FAILED, USAGE, BAD_INPUT, UNREACHABLE, INTERRUPTED = 0, 1, 2, 65, 69, 130
# What a shell says of a program that wrote to a reader who had gone.
NOBODY_READS = 128 + signal.SIGPIPE

# name -> (module, attribute, one line of help): help must not import forty modules.
COMMANDS = {
    "check": ("checks", "check", "What this machine can run, and how to mend the rest."),
    "up": ("lifecycle", "up", "Start a mesh from Kubernetes manifests and wait until it is ready."),
    "down": ("lifecycle", "down", "Stop the mesh."),
    "clean": ("lifecycle", "clean", "Remove what a crash left behind."),
    "status": ("observe", "status", "Components, nodes, enrolled namespaces and pods."),
    "apply": ("objects", "apply", "Create or change objects from files, whole or not at all."),
    "delete": ("objects", "delete", "Delete objects by file or by name."),
    "get": ("get", "get", "List objects: pods, services, namespaces, workloads, ..."),
    "enroll": ("enrollment", "enroll", "Take running pods into the mesh, without a restart."),
    "unenroll": ("enrollment", "unenroll", "Release pods from the mesh, without a restart."),
    "redirect": ("redirection", "redirect", "Show the rules that capture a pod, and what is in force."),
    "exec": ("execute", "exec_", "Run a command inside a pod's network."),
    "logs": ("observe", "logs", "Print the log of a pod or a component."),
    "waypoint": ("waypoints", "waypoint", "Manage waypoints: apply, generate, list, status, delete."),
    "ztunnel": ("ztunnels", "ztunnel", "Look into a node's ztunnel: what it knows, carries and logs."),
    "describe": (
        "describe",
        "describe",
        "Capture, HBONE, waypoint, policies of a pod or service; or why not.",
    ),
    "authz": ("authz", "authz", "Ask what policy decides between two workloads."),
    "bench": ("benching", "bench", "Drive the same load through each mode and compare."),
    "completion": ("about", "completion", "Print the completion script of a shell."),
    "version": ("about", "version", "Print the version."),
}
# What people who know istioctl type.
ALIASES = {"ztunnel-config": "ztunnel", "zc": "ztunnel"}


class Root(LazyGroup):
    """The commands by name, in the order a newcomer meets them."""

    table = COMMANDS
    aliases = ALIASES

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a reader of stdout who has seen enough, as head(1), is no failure to tell of."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # What is still buffered has no reader, either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise click.exceptions.Exit(NOBODY_READS) from None


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def root(ctx: click.Context) -> None:
    """A sidecar-less service mesh on one Linux machine, compared with sidecars.

    Start here: `ambient bench run --quick`, or `ambient check`.
    """
    ctx.ensure_object(Session)


def run(argv: Sequence[str]) -> int:
    """Run one command line and return its exit code; errors are one line on stderr."""
    try:
        result: Any = root.main(args=list(argv), prog_name="ambient", standalone_mode=False)
        return result if isinstance(result, int) else OK
    except click.exceptions.Abort:
        return complain("interrupted", INTERRUPTED)
    except KeyboardInterrupt:
        return complain("interrupted", INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as exc:
        click.echo(exc.ctx.get_help())
        return OK
    except click.UsageError as exc:
        return complain(f"{exc.format_message().rstrip('.')}; see: {usage_of(exc.ctx)} --help", USAGE)
    except click.ClickException as exc:
        return complain(exc.format_message(), exc.exit_code)
    except Exception as exc:
        return complain(*explain(exc))


def usage_of(ctx: click.Context | None) -> str:
    """The command whose help tells more."""
    return ctx.command_path if ctx else "ambient"


def explain(exc: Exception) -> tuple[str, int]:
    """Return the line and the exit code for an error of ours; what is not ours is a bug and is raised."""
    from ambient.errors import AmbientError
    from ambient.wire.admin import error_code

    if isinstance(exc, AmbientError):
        return str(exc), int(error_code(exc))
    if isinstance(exc, OSError) and "AMBIENT_TRACEBACK" not in os.environ:
        return str(exc), FAILED
    raise exc


def complain(message: str, code: int) -> int:
    """Say *message* on stderr and return *code*."""
    click.echo(f"Error: {one_line(message)}", err=True)
    return code


def main() -> None:
    """The console script; SIGTERM unwinds like Ctrl-C, so that what was started is taken down."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:]))


def _terminated(_number: int, _frame: object) -> None:
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
