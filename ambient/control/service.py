"""The control plane as a process: one cluster, two sockets, and as many links as there are daemons.

Floor 3, under trio; no reactor: nobody's bytes pass through here.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import trio

from ambient.control.cluster import Cluster
from ambient.control.desk import Desk
from ambient.control.fabric_link import FabricLink
from ambient.control.issuer import Issuer
from ambient.engine import collector
from ambient.engine.rpc import serve_admin
from ambient.errors import ConfigError
from ambient.pki.authority import LEAF_LIFETIME_SECONDS, Authority

log = logging.getLogger("ambient.control")

RUN_DIR = "AMBIENT_RUN_DIR"
FABRIC_FD = "AMBIENT_FABRIC_FD"
# Istio's ztunnel has the same name for the same thing; here the issuer decides.
SECRET_TTL = "SECRET_TTL"
SOCKET_NAME = "control.sock"

_SPAN = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def span_seconds(text: str) -> float:
    """Read ``24h``, ``90s`` or ``500ms``.

    Raises:
        ConfigError: it is none of these.
    """
    found = _SPAN.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"not a span of time such as 24h: {text!r}")
    return float(found[1]) * _UNITS[found[2]]


def make_cluster(clock: Callable[[], float] = time.time, lifetime: float = LEAF_LIFETIME_SECONDS) -> Cluster:
    """An empty mesh with a root of its own."""
    return Cluster(Issuer(Authority(clock()), clock, lifetime), clock)


async def serve(
    cluster: Cluster,
    fabric: socket.socket,
    desk: Path | socket.socket,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, or until the supervisor is gone: without it there is no mesh.

    Args:
        fabric: The supervisor's end; becomes ours to close.
        desk: Where the command line asks: a path, or a socket.
    """
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.run)
        link = FabricLink(cluster, nursery)
        # Whoever finds the socket may ask: so it is there first, and the supervisor is answered after.
        await nursery.start(partial(serve_admin, on_failure=_bug), desk, Desk(cluster).methods())
        task_status.started()
        await serve_admin(fabric, link.methods(), on_failure=_bug)
        nursery.cancel_scope.cancel()


async def run(environ: Mapping[str, str]) -> None:
    """The process: from its environment to SIGTERM.

    Raises:
        ConfigError: the environment lacks something.
    """
    fabric = socket.socket(fileno=_fd(environ))
    lifetime = span_seconds(environ.get(SECRET_TTL, f"{LEAF_LIFETIME_SECONDS:g}s"))
    path = Path(_needed(environ, RUN_DIR)) / SOCKET_NAME
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_on_signal, nursery.cancel_scope)
            collector.settle()
            await serve(make_cluster(lifetime=lifetime), fabric, path)
            nursery.cancel_scope.cancel()
    finally:
        path.unlink(missing_ok=True)


async def _stop_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            scope.cancel()
            return


def _fd(environ: Mapping[str, str]) -> int:
    text = _needed(environ, FABRIC_FD)
    try:
        os.fstat(int(text))
    except (ValueError, OSError) as exc:
        raise ConfigError(f"{FABRIC_FD}={text!r} is not an open descriptor") from exc
    return int(text)


def _needed(environ: Mapping[str, str], name: str) -> str:
    if not environ.get(name):
        raise ConfigError(f"{name} is not set; control is started by the mesh's supervisor (ambient up)")
    return environ[name]


def _bug(exc: Exception) -> None:
    log.error("a call failed: %r", exc, exc_info=exc)
