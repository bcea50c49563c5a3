"""The helper of a real Envoy sidecar: ``python -m waypoint.envoy_helper``, started by ``envoy_process``.

It follows control, keeps the certificate in memory files that Envoy inherited, and rewrites Envoy's files
when the mesh or the certificate changes. It ends with Envoy.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import trio

from ambient.engine.follow import Follow, control_socket
from ambient.engine.svids import SvidCache
from ambient.engine.tls import Svid
from ambient.errors import AmbientError
from ambient.model.identity import DEFAULT_TRUST_DOMAIN, SpiffeId
from ambient.model.workload import Workload
from ambient.pki.svid import pem
from waypoint.envoy_bootstrap import bootstrap, dynamic_files
from waypoint.envoy_process import BOOTSTRAP, FDS_VARIABLE, FOLDER_VARIABLE
from waypoint.envoy_tls import Files
from waypoint.settings import Settings, read_settings

log = logging.getLogger("waypoint.envoy")

EXIT_UNAVAILABLE = 69
# Updates come in bursts while a mesh starts: Envoy is told once for each so long. Picked, not measured.
GATHER_SECONDS = 0.05
PR_SET_PDEATHSIG = 1


class Helper:
    """Everything that Envoy needs from us."""

    def __init__(self, settings: Settings, control: socket.socket, files: Files, folder: Path) -> None:
        self._settings = settings
        self._files = files
        self._folder = folder
        self._follow = Follow(control)
        self._svids = SvidCache(self._follow)
        self._identity = SpiffeId(DEFAULT_TRUST_DOMAIN, settings.namespace, settings.service_account)
        self._serial = 0
        self._written: dict[str, str] = {}
        self._changed = trio.Event()

    async def run(self, word: socket.socket) -> None:
        """Say "ready" on *word* once Envoy can start, then follow until cancelled."""
        self._follow.on_update = self._note
        self._svids.on_renewed = lambda identity: self._note()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow.run)
            nursery.start_soon(self._svids.run)
            await self._follow.synchronised()
            while (me := self._me()) is None:
                await self._next_change()
            await self._refresh(me)
            self._write(BOOTSTRAP, json.dumps(bootstrap(me, str(self._folder)), indent=1))
            word.send(b"ready")
            word.close()
            while True:
                await self._next_change()
                await trio.sleep(GATHER_SECONDS)
                # A pod that control has forgotten is about to be stopped: its last configuration stays.
                if (me := self._me()) is not None:
                    await self._refresh(me)

    def _me(self) -> Workload | None:
        return self._follow.mesh.workload(self._settings.pod_uid)

    def _note(self) -> None:
        self._changed.set()

    async def _next_change(self) -> None:
        await self._changed.wait()
        self._changed = trio.Event()

    async def _refresh(self, me: Workload) -> None:
        """Bring Envoy's files up to what is known now."""
        self._keep(await self._svids.get(self._identity))
        files = Files(self._files.chain, self._files.key, self._files.roots, self._serial)
        for name, text in dynamic_files(
            self._follow.mesh, me, files, access_log=self._settings.access_log
        ).items():
            self._write(name, text)

    def _keep(self, svid: Svid) -> None:
        """Put a new certificate where Envoy reads it."""
        chain, roots = pem(svid.chain), pem(svid.roots)
        if self._written.get("chain") == chain.decode():
            return
        for descriptor, data in (
            (self._files.chain, chain),
            (self._files.key, svid.key),
            (self._files.roots, roots),
        ):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, data, 0)
        self._written["chain"] = chain.decode()
        self._serial += 1

    def _write(self, name: str, text: str) -> None:
        """Move a whole new file into place; Envoy watches for the move."""
        if self._written.get(name) == text:
            return
        temporary = self._folder / f".{name}.new"
        temporary.write_text(text)
        temporary.rename(self._folder / name)
        self._written[name] = text


def die_with_parent() -> None:
    """Be killed when Envoy ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Run the helper; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s\t%(levelname)s\t%(name)s\t%(message)s")
    chain, key, roots, word_fd = (int(text) for text in os.environ[FDS_VARIABLE].split(","))
    word = socket.socket(fileno=word_fd)
    try:
        settings = read_settings(os.environ)
        helper = Helper(
            settings, control_socket(), Files(chain, key, roots), Path(os.environ[FOLDER_VARIABLE])
        )
        trio.run(helper.run, word)
    except (AmbientError, OSError, BaseExceptionGroup) as exc:
        reason = _reason(exc)
        log.error("%s", reason)
        if word.fileno() >= 0:
            word.send(reason.encode()[:4096])
        return EXIT_UNAVAILABLE
    return 0


def _reason(exc: BaseException) -> str:
    """The first expected failure of a group, in words; whatever else is in it is a bug and leaves."""
    if not isinstance(exc, BaseExceptionGroup):
        return str(exc)
    _expected, bugs = exc.split((AmbientError, OSError))
    if bugs is not None:
        raise bugs
    return _reason(exc.exceptions[0])


if __name__ == "__main__":
    die_with_parent()
    sys.exit(main())
