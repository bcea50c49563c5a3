"""``python -m ambient.control``: the control plane of one mesh, started by its supervisor."""

from __future__ import annotations

import logging
import os
import sys

import trio

from ambient.control.service import run
from ambient.engine.privileges import NOTHING, keep_only
from ambient.errors import AmbientError, ConfigError

BAD_INPUT = 65


def main() -> int:
    """Run until stopped; return the exit code."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s\t%(levelname)s\t%(name)s\t%(message)s"
    )
    try:
        trio.run(run, os.environ)
    except AmbientError as exc:
        print(f"ambient.control: {exc}", file=sys.stderr)
        return BAD_INPUT if isinstance(exc, ConfigError) else 1
    return 0


if __name__ == "__main__":
    keep_only(NOTHING)
    sys.exit(main())
