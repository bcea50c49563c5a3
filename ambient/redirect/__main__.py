"""``python -m ambient.redirect``: the node agent."""

from __future__ import annotations

import logging
import os
import sys
import time

import trio

from ambient.engine import collector
from ambient.engine.follow import control_socket
from ambient.engine.headroom import raise_file_limit
from ambient.engine.privileges import NODE_DAEMON, keep_only
from ambient.errors import AmbientError, ConfigError
from ambient.redirect.agent import Agent, read_settings
from ambient.redirect.backends import BACKEND_NAME, needed

# sysexits.h, as interfaces.md lists them.
EXIT_FAILED, EXIT_CONFIG, EXIT_UNAVAILABLE = 1, 65, 69


class _Lines(logging.Formatter):
    """ztunnel's shape: time, level, scope, message, separated by tabs."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = "warn" if record.levelno == logging.WARNING else record.levelname.lower()
        return f"{moment}.{int(record.created % 1 * 1e6):06d}Z\t{level}\t{record.name}\t{record.getMessage()}"


def main() -> int:
    """Run until told to stop; returns the exit code."""
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(_Lines())
    logging.basicConfig(level=logging.INFO, handlers=[output])
    failure: BaseException | None = None
    try:
        agent = Agent(read_settings(), control_socket())
        collector.settle()
        trio.run(agent.run)
    except ConfigError as exc:
        print(f"agent: {exc}", file=sys.stderr)
        return EXIT_CONFIG
    except BaseExceptionGroup as group:
        failure = _only(group)
        if not isinstance(failure, (AmbientError, OSError)):
            raise
    if failure is None:
        return 0
    print(f"agent: {failure}", file=sys.stderr)
    return EXIT_UNAVAILABLE if isinstance(failure, AmbientError) else EXIT_FAILED


def _only(exc: BaseException) -> BaseException:
    while isinstance(exc, BaseExceptionGroup) and len(exc.exceptions) == 1:
        exc = exc.exceptions[0]
    return exc


if __name__ == "__main__":
    raise_file_limit()
    keep_only(NODE_DAEMON | needed(os.environ.get(BACKEND_NAME, "")))
    sys.exit(main())
