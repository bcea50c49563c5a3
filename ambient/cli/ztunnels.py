"""``ambient ztunnel``: what a node's ztunnel knows and does, and how it is told to.

Only the group lives here; each command is imported from its own module when it is called.
"""

from __future__ import annotations

import click

from ambient.cli.lazy import LazyGroup

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


class Ztunnel(LazyGroup):
    """The commands by name."""

    table = COMMANDS
    aliases = ALIASES


@click.group(cls=Ztunnel)
def ztunnel() -> None:
    """Look into the ztunnel of a node, and tell it what to do."""
