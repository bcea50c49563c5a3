"""The run directory: where it is, what it says about the mesh that lives in it.

Standard library only. It is private to its owner (0700): whoever can write it can talk to the mesh's
sockets, which ask for no other credential.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ambient.errors import AmbientError, ConfigError
from ambient.fabric import procfs

RECORD_NAME = "mesh.json"
# sockaddr_un holds 108 bytes; the longest name of ours below the run directory is
# "nodes/node-NNN/zds.sock", and a byte goes to the end mark.
MAX_PATH_BYTES = 107 - 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What ``mesh.json`` says: enough to find the mesh again, and to know it is the same one.

    Attributes:
        init_pid: Host PID of PID 1 of the mesh.
        init_started: Its start time in clock ticks since boot, against reuse of the number.
        fabric: ``"netns"`` or ``"loopback"``.
        cni: Who attaches pods: ``"builtin"`` or a CNI plugin.
        rootless: Whether the mesh lives in a user namespace.
        uid: Who owns it.
    """

    init_pid: int
    init_started: int
    fabric: str
    rootless: bool
    nodes: int
    uid: int
    version: int = 1
    cni: str = "builtin"

    @property
    def alive(self) -> bool:
        """Whether this very mesh still runs."""
        return procfs.is_alive(self.init_pid, self.init_started)


def default_path(environment: Mapping[str, str], uid: int) -> str:
    """Where the run directory is unless the command line says otherwise."""
    if path := environment.get("AMBIENT_RUN_DIR"):
        return os.path.abspath(path)
    if path := environment.get("XDG_RUNTIME_DIR"):
        return f"{path.rstrip('/')}/ambient"
    return "/run/ambient" if uid == 0 else f"/tmp/ambient-{uid}"


def prepare(path: str) -> None:
    """Make the run directory, or accept the one that is there.

    Raises:
        ConfigError: it cannot be used, and why.
    """
    if len(os.fsencode(path)) > MAX_PATH_BYTES:
        raise ConfigError(
            f"run directory {path!r} is too long for unix sockets, at most {MAX_PATH_BYTES} bytes"
        )
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.makedirs(path, mode=0o700, exist_ok=True)
        found = os.lstat(path)
        if found.st_uid != os.geteuid():
            raise ConfigError(
                f"run directory {path!r} belongs to uid {found.st_uid}: choose another --run-dir"
            )
        os.chmod(path, 0o700)
        os.makedirs(f"{path}/logs", exist_ok=True)
    except OSError as exc:
        raise ConfigError(f"cannot use run directory {path!r}: {exc.strerror or exc}") from exc


def read(path: str) -> Record | None:
    """The record in *path*, or None if there is none.

    Raises:
        AmbientError: there is one that cannot be read.
    """
    try:
        return Record(**json.loads(Path(path, RECORD_NAME).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as exc:
        raise AmbientError(f"{path}/{RECORD_NAME} cannot be read ({exc}): ambient clean removes it") from exc


def write(path: str, record: Record) -> None:
    """Write *record* so that a reader sees all of it or nothing."""
    target = Path(path, RECORD_NAME)
    draft = target.with_suffix(".new")
    draft.write_text(json.dumps(asdict(record)), encoding="utf-8")
    draft.replace(target)
