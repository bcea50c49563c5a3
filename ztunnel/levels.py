"""How much is logged: levels by scope, as text in RUST_LOG's and istioctl's shapes.

Pure but for ``Levels.apply``, which tells the logging module. Access records have a scope of their own and
are written whatever the rest is set to; only who names that scope changes them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from ambient.errors import ConfigError

ACCESS = "access"
# Names that may be set; "" stands for all the others together.
SCOPES = ("ztunnel", "dns", ACCESS)
# A level that nothing reaches.
OFF = logging.CRITICAL + 10
LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": OFF,
}
_NAMES = {number: name for name, number in reversed(LEVELS.items()) if name not in ("trace", "warning")}
# Longer text is no list of levels. Picked, not measured.
MAX_TEXT_CHARACTERS = 512


def parse_levels(text: str) -> dict[str, int]:
    """Read ``info``, ``access:debug,info`` or ``ztunnel=debug``: scope -> level, "" for the rest.

    Raises:
        ConfigError: a level or a scope that does not exist, or one that stands twice.
    """
    if len(text) > MAX_TEXT_CHARACTERS:
        raise ConfigError(f"over {MAX_TEXT_CHARACTERS} characters of levels")
    found: dict[str, int] = {}
    for part in text.split(","):
        scope, sign, level = part.strip().replace("=", ":").rpartition(":")
        if sign and scope not in SCOPES:
            raise ConfigError(f"no scope {scope!r}; there are: {', '.join(SCOPES)}")
        if level.lower() not in LEVELS:
            raise ConfigError(f"no level {level!r}; there are: {', '.join(LEVELS)}")
        if scope in found:
            raise ConfigError(f"{scope or 'the level of all'} stands twice")
        found[scope] = LEVELS[level.lower()]
    return found


class Levels:
    """The levels in force.

    Attributes:
        access: From which level on access records are written.
    """

    def __init__(self) -> None:
        self.access = logging.INFO
        self._set: dict[str, int] = {"": logging.INFO}

    def apply(self, levels: Mapping[str, int]) -> None:
        """Set these, leave the others."""
        self._set.update(levels)
        self.access = self._set.get(ACCESS, logging.INFO)
        logging.getLogger().setLevel(self._set[""])
        for scope in SCOPES:
            if scope != ACCESS:
                logging.getLogger(scope).setLevel(self._set.get(scope, logging.NOTSET))

    def reset(self) -> None:
        """Back to how the process starts without RUST_LOG."""
        self._set = {"": logging.INFO}
        self.apply({})

    def __str__(self) -> str:
        named = [f"{scope}={_NAMES[level]}" for scope, level in sorted(self._set.items()) if scope]
        return ",".join([*named, _NAMES[self._set[""]]])
