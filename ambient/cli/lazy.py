"""Groups whose commands are named in a table and imported on use: a shell waits for each start."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import ClassVar

import click

from ambient.cli.session import DeskGroup


class LazyGroup(DeskGroup):
    """A group of commands that are modules of this package; a subclass fills in the tables.

    Attributes:
        table: name -> (module, attribute, one line of help), in the order of the help.
        aliases: What else people type for a name.
    """

    table: ClassVar[Mapping[str, tuple[str, str, str]]] = {}
    aliases: ClassVar[Mapping[str, str]] = {}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every command, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        name = self.aliases.get(cmd_name, cmd_name)
        if name not in self.table:
            return None
        module, attribute, _help = self.table[name]
        found: click.Command = getattr(importlib.import_module(f"ambient.cli.{module}"), attribute)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list from the table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[2]) for name, entry in self.table.items()])
