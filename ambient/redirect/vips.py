"""Keeps a node's virtual addresses as the mesh says: one transaction for each change, none without one."""

from __future__ import annotations

import logging

import trio

from ambient.model.mesh import Mesh
from ambient.redirect import backend
from ambient.redirect.vip_plan import vip_plan
from ambient.wire.nft import Table

log = logging.getLogger("agent")

# After a refusal by the kernel; picked, not measured.
RETRY_SECONDS = 1.0


class VirtualAddresses:
    """Programs the network namespace that this process lives in.

    Attributes:
        written: Transactions made so far.
    """

    def __init__(self, mesh: Mesh, node: str) -> None:
        self.written = 0
        self._mesh = mesh
        self._node = node
        self._stands: Table | None = None
        self._changed = trio.Event()
        self._changed.set()

    def mesh_changed(self) -> None:
        """Call after each change of the mesh; changes that come together are written together."""
        self._changed.set()

    async def run(self) -> None:
        """Write the mesh's rules until cancelled; what stands then stays."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            try:
                await self._write()
            except OSError as exc:
                log.error("virtual addresses are out of date: %s", exc)
                await trio.sleep(RETRY_SECONDS)
                self._changed.set()

    async def _write(self) -> None:
        table = vip_plan(self._mesh, self._node)
        if table != self._stands:
            # Replacing waits for the kernel; the name server must not.
            await trio.to_thread.run_sync(backend.replace, None, table)
            self._stands = table
            self.written += 1
