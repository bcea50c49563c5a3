"""``ambient ztunnel``: what a node's ztunnel knows and does, and how it is told to.

Only the group lives here; each command is imported from its own module when it is called.
"""

from __future__ import annotations

import importlib

import click

from ambient.cli.session import DeskGroup

# name -> (module, attribute, one line of help), in the order of istioctl's ztunnel-config.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "workload": ("ztunnel_config", "workload", "The workloads that ztunnel knows."),
    "service": ("ztunnel_config", "service", "The services, and how many endpoints are healthy."),
    "policy": ("ztunnel_config", "policy", "The policies that it enforces."),
    "certificate": ("ztunnel_config", "certificate", "The certificates that it holds."),
    "connections": ("ztunnel_config", "connections", "The connections that it carries now."),
    "all": ("ztunnel_config", "all_", "All of these; as JSON, a dump for -f."),
    "log": ("ztunnel_config", "log", "Show or change what it logs."),
    "restart": ("ztunnel_restart", "restart", "Replace a node's ztunnel while it serves."),
}
# istioctl's other spellings.
ALIASES = {
    "workloads": "workload",
    "w": "workload",
    "services": "service",
    "svc": "service",
    "s": "service",
    "policies": "policy",
    "p": "policy",
    "certificates": "certificate",
    "certs": "certificate",
    "cert": "certificate",
    "connection": "connections",
    "conns": "connections",
}


class Ztunnel(DeskGroup):
    """The commands by name."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        name = ALIASES.get(cmd_name, cmd_name)
        if name not in COMMANDS:
            return None
        module, attribute, _help = COMMANDS[name]
        found: click.Command = getattr(importlib.import_module(f"ambient.cli.{module}"), attribute)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list from the table above."""
        if COMMANDS:
            with formatter.section("Commands"):
                formatter.write_dl([(name, entry[2]) for name, entry in COMMANDS.items()])


@click.group(cls=Ztunnel)
def ztunnel() -> None:
    """Look into the ztunnel of a node, and tell it what to do."""
