"""What this ztunnel knows of the mesh, kept in the run directory for the next one.

Written beside and renamed, so that a reader finds the old one or the new one. It is not synced to the disk:
it outlives a process, not the machine, after whose end no pod of it is left; what a power cut leaves of it
fails its checksum.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path

import trio

from ambient.errors import RemoteProtocolError
from ambient.model.mesh import Change, Mesh
from ambient.wire import snapshot

log = logging.getLogger("ztunnel")

# From a change to its being kept: a burst is written once. Picked, not measured.
SETTLE_SECONDS = 0.2
# Between two writes at the least, and so many times as long as the last one took, within reason: 10,000
# workloads take 0.13 s of this thread, in pieces, and some meshes change all the time. Picked.
PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 2.0, 30.0
REST = 10
# What traffic has for itself between two pieces, which take some 0.25 ms each.
PIECE_PAUSE_SECONDS = 0.002
# Ten times the largest mesh foreseen (100,000 workloads of 800 bytes).
MAX_BYTES = 1024 * 1024 * 1024
QUARANTINE_SUFFIX = ".quarantined"


class MeshFile:
    """The file at *path*, "" for none.

    Args:
        mesh: What is kept.
    """

    def __init__(self, path: str, mesh: Mesh) -> None:
        self._path = path
        self._mesh = mesh
        self._changed = trio.Event()
        self._complained = False

    def changed(self) -> None:
        """The mesh is another one; it will be kept."""
        self._changed.set()

    async def keep(self) -> None:
        """Write whenever the mesh has changed, until cancelled."""
        if not self._path:
            return
        self._remove_leftovers()
        while True:
            await self._changed.wait()
            await trio.sleep(SETTLE_SECONDS)
            self._changed = trio.Event()
            started = trio.current_time()
            await self._write(self._mesh.snapshot(ordered=False))
            rest = REST * (trio.current_time() - started)
            await trio.sleep(min(max(PAUSE_SECONDS, rest), LONGEST_PAUSE_SECONDS))

    def load(self) -> Change | None:
        """What the last process knew; None if nothing can be believed. Such a file is put aside."""
        if not self._path:
            return None
        try:
            return snapshot.read(_read_own(self._path))
        except FileNotFoundError:
            return None
        except (RemoteProtocolError, OSError) as exc:
            aside = self._path + QUARANTINE_SUFFIX
            with suppress(OSError):
                os.replace(self._path, aside)
            log.error("the mesh snapshot cannot be used, see %s: %s", aside, exc)
            return None

    async def _write(self, known: Change) -> None:
        beside = f"{self._path}.{os.getpid()}"
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                for piece in snapshot.pieces(known):
                    view = memoryview(piece)
                    while view:
                        view = view[os.write(fd, view) :]
                    await trio.sleep(PIECE_PAUSE_SECONDS)
            finally:
                os.close(fd)
            os.replace(beside, self._path)
            self._complained = False
        except OSError as exc:
            if not self._complained:
                self._complained = True
                log.error("what is known of the mesh cannot be kept: %s", exc)
            self._changed.set()  # Later, perhaps.
        finally:
            with suppress(OSError):
                os.unlink(beside)

    def _remove_leftovers(self) -> None:
        """What a process that was killed while it wrote has left."""
        folder, name = os.path.split(self._path)
        with suppress(OSError):
            for found in Path(folder).glob(f"{name}.*[0-9]"):
                if found.suffix[1:].isdigit():
                    found.unlink(missing_ok=True)


def _read_own(path: str) -> bytes:
    """The bytes of a regular file that only its owner, who is us, can have written."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise RemoteProtocolError("not a regular file")
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise RemoteProtocolError("somebody else could have written it")
        if status.st_size > MAX_BYTES:
            raise RemoteProtocolError(f"{status.st_size} bytes, limit {MAX_BYTES}")
        return file.read()
