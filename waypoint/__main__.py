"""``python -m waypoint --role waypoint|sidecar``: one L7 proxy in one pod's network."""

from __future__ import annotations

import argparse
import functools
import logging
import os
import resource
import sys

from ambient.engine.host import run as host_run
from ambient.engine.privileges import NOTHING, keep_only, sidecar
from ambient.errors import AmbientError, ConfigError
from waypoint.settings import Settings, read_settings

EXIT_BAD_INPUT = 65
EXIT_UNAVAILABLE = 69


def main(arguments: list[str] | None = None) -> int:
    """Run the proxy; returns the exit code."""
    options = _parse(arguments)
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s\t%(levelname)s\t%(name)s\t%(message)s"
    )
    # A key log would hold every session's secrets; the bare SSLContext ignores it, and so do our children.
    os.environ.pop("SSLKEYLOGFILE", None)
    try:
        _run(options, read_settings(os.environ))
    except ConfigError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except (AmbientError, OSError) as exc:
        print(f"error: {exc}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m waypoint", description="One L7 proxy of the mesh.")
    parser.add_argument("--role", required=True, choices=("waypoint", "sidecar"))
    parser.add_argument("--engine", default="ambient", choices=("ambient", "envoy"), help="whose data path")
    return parser.parse_args(arguments)


def _run(options: argparse.Namespace, settings: Settings) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if options.engine == "envoy":
        if options.role == "waypoint":
            raise ConfigError("--engine envoy serves sidecars; waypoints are ours")
        from waypoint.envoy_process import become_envoy

        become_envoy(settings)
    from waypoint.daemon import run

    host_run(functools.partial(run, settings=settings, role=options.role))


if __name__ == "__main__":
    keep_only(sidecar(os.uname().release) if "sidecar" in sys.argv else NOTHING)
    sys.exit(main())
