"""``python -m ztunnel``: the per-node L4 proxy."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Sequence

from ambient.engine import collector, host
from ambient.engine.headroom import raise_file_limit
from ambient.engine.privileges import NODE_DAEMON, keep_only
from ambient.errors import AmbientError, ConfigError
from ambient.model.release import VERSION
from ztunnel.daemon import run
from ztunnel.environment import help_text
from ztunnel.settings import Settings, read_settings

# sysexits.h, as interfaces.md lists them.
EXIT_USAGE, EXIT_CONFIG, EXIT_UNAVAILABLE = 2, 65, 69


class Lines(logging.Formatter):
    """ztunnel's shape: time, level, scope, message, separated by tabs; or the same as JSON."""

    def __init__(self, *, as_json: bool = False) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback of a bug below it (inside the message, in JSON)."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        moment = f"{seconds}.{int(record.created % 1 * 1e6):06d}Z"
        level = "warn" if record.levelno == logging.WARNING else record.levelname.lower()
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if self._as_json:
            return json.dumps({"level": level, "time": moment, "scope": record.name, "message": text})
        return f"{moment}\t{level}\t{record.name}\t{text}"


def command(arguments: Sequence[str]) -> int:
    """What the command line asks for: ztunnel's three words, of which ``proxy`` is the default."""
    match list(arguments):
        case [] | ["proxy"]:
            return main()
        case ["help" | "--help" | "-h"]:
            print(help_text(), end="")
            return 0
        case ["version" | "--version"]:
            print(VERSION)
            return 0
        case _:
            print("ztunnel: proxy, version or help is understood here; see: --help", file=sys.stderr)
            return EXIT_USAGE


def main() -> int:
    """Run until told to stop; returns the exit code."""
    # A session's secrets must reach nobody, whoever set this variable.
    os.environ.pop("SSLKEYLOGFILE", None)
    try:
        settings = read_settings(os.environ)
        _log_to_stderr(settings)
        _run(settings)
    except ConfigError as exc:
        print(f"ztunnel: {exc}", file=sys.stderr)
        return EXIT_CONFIG
    except AmbientError as exc:
        print(f"ztunnel: {exc}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return 0


def _log_to_stderr(settings: Settings) -> None:
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(Lines(as_json=settings.json_log))
    logging.basicConfig(level=logging.INFO, handlers=[output])


def _run(settings: Settings) -> None:
    raise_file_limit()
    collector.settle()
    host.run(lambda reactor: run(reactor, settings))


if __name__ == "__main__":
    keep_only(NODE_DAEMON)
    sys.exit(command(sys.argv[1:]))
