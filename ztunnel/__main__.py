"""``python -m ztunnel``: the per-node L4 proxy."""

from __future__ import annotations

import gc
import logging
import os
import sys
import time

from ambient.engine import host
from ambient.errors import AmbientError, ConfigError
from ztunnel.daemon import raise_file_limit, run
from ztunnel.settings import Settings, read_settings

# sysexits.h, as interfaces.md lists them.
EXIT_CONFIG, EXIT_UNAVAILABLE = 65, 69


class _Lines(logging.Formatter):
    """ztunnel's shape: time, level, scope, message, separated by tabs."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        level = "warn" if record.levelno == logging.WARNING else record.levelname.lower()
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return f"{moment}.{int(record.created % 1 * 1e6):06d}Z\t{level}\t{record.name}\t{text}"


def main() -> int:
    """Run until told to stop; returns the exit code."""
    # A session's secrets must reach nobody, whoever set this variable.
    os.environ.pop("SSLKEYLOGFILE", None)
    output = logging.StreamHandler(sys.stderr)
    output.setFormatter(_Lines())
    logging.basicConfig(level=logging.INFO, handlers=[output])
    try:
        _run(read_settings(os.environ))
    except ConfigError as exc:
        print(f"ztunnel: {exc}", file=sys.stderr)
        return EXIT_CONFIG
    except AmbientError as exc:
        print(f"ztunnel: {exc}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return 0


def _run(settings: Settings) -> None:
    raise_file_limit()
    # What start-up made stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    host.run(lambda reactor: run(reactor, settings))


if __name__ == "__main__":
    sys.exit(main())
