"""Ending a mesh, and removing what a crash left.

Everything a mesh has lives in the PID namespace of its init or in its run directory: end the one,
remove the other, and nothing is left, whatever happened before. All of it may be repeated.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ambient.errors import AmbientError
from ambient.fabric import guestbook, procfs, rundir, syscalls

# After SIGKILL of init the kernel takes its processes and namespaces down by itself.
KILL_SECONDS = 20.0
# What the supervisor takes for a graceful stop, and then some; see ``supervisor.STOP_SECONDS``.
DOWN_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What :func:`clean` found and removed."""

    killed: int = 0
    removed: bool = False

    @property
    def anything(self) -> bool:
        """Whether there was something to clean."""
        return bool(self.killed) or self.removed


def running(run_dir: str) -> rundir.Record | None:
    """The mesh that runs in *run_dir*, or None; also one whose record is lost."""
    with suppress(AmbientError):
        record = rundir.read(run_dir)
        if record is not None:
            return record if record.alive else None
    return _without_record(run_dir)


def _without_record(run_dir: str) -> rundir.Record | None:
    """The mesh whose init was started for *run_dir*: init keeps the command line of ``bootstrap``."""
    wanted = b"ambient.fabric.bootstrap\0" + os.fsencode(run_dir) + b"\0"
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):
            if wanted not in Path(f"/proc/{pid}/cmdline").read_bytes():
                continue
            if Path(f"/proc/{pid}/comm").read_text().strip() != syscalls.INIT_NAME:
                continue  # A pod's pause process is a fork of init, and goes with it.
            uid, ticks = os.stat(f"/proc/{pid}").st_uid, procfs.start_ticks(pid)
            return rundir.Record(
                init_pid=pid, init_started=ticks, fabric="netns", rootless=uid != 0, nodes=0, uid=uid
            )
    return None


def down(run_dir: str, timeout: float = DOWN_SECONDS) -> bool:
    """Stop the mesh gracefully, and by force after *timeout*; leave nothing.

    Returns:
        Whether there was a mesh to stop.
    """
    record = running(run_dir)
    if record is None:
        return False
    if not _end(record, signal.SIGTERM, timeout):
        _end(record, signal.SIGKILL, KILL_SECONDS)
    guestbook.clear_rules(run_dir)
    _remove(run_dir)
    return True


def kill(run_dir: str) -> int:
    """End the mesh at once; the run directory stays. Returns the PID killed, or 0."""
    record = running(run_dir)
    if record is None:
        return 0
    if not _end(record, signal.SIGKILL, KILL_SECONDS):
        raise AmbientError(f"pid {record.init_pid} does not end: kill -9 it as its owner")
    return record.init_pid


def clean(run_dir: str) -> Cleaned:
    """Remove a mesh and its run directory in whatever state they are."""
    killed = kill(run_dir)
    guestbook.clear_rules(run_dir)
    return Cleaned(killed=killed, removed=_remove(run_dir))


def _end(record: rundir.Record, number: signal.Signals, timeout: float) -> bool:
    """Signal init and wait until it is gone; a pidfd cannot be fooled by a reused number."""
    try:
        pidfd = os.pidfd_open(record.init_pid)
    except ProcessLookupError:
        return True
    try:
        if not record.alive:
            return True
        signal.pidfd_send_signal(pidfd, number)
        return bool(select.select((pidfd,), (), (), timeout)[0])
    except ProcessLookupError:
        return True
    except PermissionError as exc:
        raise AmbientError(f"the mesh belongs to uid {record.uid}: {exc.strerror}") from exc
    finally:
        os.close(pidfd)


def _remove(run_dir: str) -> bool:
    try:
        shutil.rmtree(run_dir)
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise AmbientError(f"cannot remove {run_dir}: {exc.strerror or exc}") from exc
    return True
