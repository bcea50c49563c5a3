"""A node's ztunnel: forked from a zygote, started again at once when it dies, replaced while it serves.

Two of them overlap during an upgrade. The agent (``ambient.redirect.zds_server``) gives the newer one the
listeners and tells the older one to retire; here the older one is only waited for, however long its
connections last.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from ambient.errors import AmbientError
from ambient.fabric.daemons import PATIENCE_SECONDS, Daemon, Keeper, note
from ambient.fabric.initclient import Process
from ambient.fabric.restart_plan import NODE_RESTART, Backoff
from ambient.fabric.table import Entry
from ambient.fabric.zygote import Zygote

# How long control may hang before a new ztunnel is told that there is none; meanwhile it serves by what the
# last one knew. Picked, not measured.
ATTACH_SECONDS = 30.0
# From the birth of a ztunnel to its word that it serves; an add may wait 17 s for a certificate.
READY_SECONDS = 30.0
# Retired processes of a node that still carry connections: each takes some 10 MiB and what these need, and
# none is ended before its last connection. Picked, not measured.
MAX_RETIRED = 16


@dataclass(slots=True)
class ZtunnelKeeper:
    """Keeps one node's ztunnel running.

    Args:
        daemon: How it would be started by itself; the zygote gets the same surroundings.
    """

    keeper: Keeper
    daemon: Daemon
    entry: Entry = field(init=False)
    _zygote: Zygote | None = field(init=False, default=None)
    _zygote_there: trio.Event = field(init=False, default_factory=trio.Event)
    _nursery: trio.Nursery | None = field(init=False, default=None)
    _retired: int = field(init=False, default=0)
    _backoff: Backoff = field(init=False, default=NODE_RESTART)
    _starting: trio.Lock = field(init=False, default_factory=trio.Lock)

    def __post_init__(self) -> None:
        self.entry = self.daemon.entry()

    async def keep(self, *, task_status: trio.TaskStatus[Entry] = trio.TASK_STATUS_IGNORED) -> None:
        """Run it until cancelled; then stop it, and those before it, and return."""
        self.keeper.table.add(self.entry)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self._keep_zygote)
                await self._start()
                task_status.started(self.entry)
                await trio.sleep_forever()
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True):
                await self._stop(self.entry)
            self.keeper.table.remove(self.entry)

    async def upgrade(self) -> dict[str, object]:
        """Let a new process take over from the one that runs, and return when it serves.

        Raises:
            AmbientError: the new one does not come to serve, or too many before it still carry connections;
                then the old one goes on.
        """
        if self._retired >= MAX_RETIRED:
            raise AmbientError(
                f"{self._retired} earlier ztunnels of {self.daemon.node} still carry connections: wait for "
                "these, or end one of the processes that ambient status shows with SIGTERM"
            )
        async with self._starting:
            old, began = self.entry.process, trio.current_time()
            process, ready = await self._fork()
            if not await _says_ready(ready):
                await self.keeper.init.kill(process)
                raise AmbientError(f"the new ztunnel of {self.daemon.node} does not serve: see its log")
            self._watch(process)
            if old is not None and old.running and self._nursery is not None:
                self._nursery.start_soon(self._show_old, old)
        return {
            "node": self.daemon.node,
            "old_pid": old.host_pid if old is not None else 0,
            "pid": process.host_pid,
            "seconds": round(trio.current_time() - began, 3),
        }

    async def _start(self) -> None:
        """Until there is one: an upgrade that was under way may have made it."""
        async with self._starting:
            while not self.entry.running:
                try:
                    process, ready = await self._fork()
                    os.close(ready)  # The agent knows when it serves; nobody waits.
                    self._watch(process)
                except AmbientError as exc:
                    note(f"{self.daemon.name} cannot start: {exc}")
                    await trio.sleep(NODE_RESTART.first)

    def _watch(self, process: Process) -> None:
        """It is the node's ztunnel from now on."""
        assert self._nursery is not None
        self.entry.process = process
        self._nursery.start_soon(self._restart_after, process, trio.current_time())

    async def _restart_after(self, process: Process, born: float) -> None:
        status = await process.wait()
        if self.entry.process is process:
            self._backoff = self._backoff.ended(trio.current_time() - born)
            note(f"{self.daemon.name} ended with {status}; next start in {self._backoff.delay:g} s")
            await trio.sleep(self._backoff.delay)
            self.entry.restarts += 1
            await self._start()

    async def _show_old(self, process: Process) -> None:
        """Show it while it is there."""
        name = f"{self.daemon.name}/{process.host_pid}"
        entry = self.keeper.table.add(replace(self.entry, name=name, process=process, restarts=0))
        self._retired += 1
        try:
            await process.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self._stop(entry)
            self._retired -= 1
            self.keeper.table.remove(entry)

    async def _stop(self, entry: Entry) -> None:
        if entry.process is not None and entry.process.running:
            await self.keeper.init.stop(entry.process, PATIENCE_SECONDS)

    async def _fork(self) -> tuple[Process, int]:
        """A new process, and the descriptor on which it says that it serves."""
        while self._zygote is None:
            await self._zygote_there.wait()
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            with ExitStack() as stack:
                stack.callback(os.close, writer)
                ours, theirs = socket.socketpair()
                stack.enter_context(theirs)
                # Nobody who connects meanwhile waits for control: what it says first stays in the socket.
                assert self._nursery is not None
                self._nursery.start_soon(self._attach, ours)
                return await self._zygote.fork(theirs.fileno(), writer), reader
        except BaseException:
            os.close(reader)
            raise

    async def _attach(self, end: socket.socket) -> None:
        """Without control it goes by what the last one knew."""
        with end:
            try:
                with trio.move_on_after(ATTACH_SECONDS) as patience:
                    await self.keeper.attach(self.daemon, end)
            except AmbientError as exc:
                note(f"{self.daemon.name} goes on without control: {exc}")
        if patience.cancelled_caught:
            note(f"{self.daemon.name} goes on without control, which does not answer")

    async def _keep_zygote(self) -> None:
        backoff = NODE_RESTART
        entry = self.keeper.table.add(replace(self.entry, name=f"{self.daemon.name}/zygote"))
        try:
            while True:
                born = trio.current_time()
                async with self._one_zygote() as process:
                    entry.process = process
                    status = await process.wait()
                backoff = backoff.ended(trio.current_time() - born)
                note(f"{entry.name} ended with {status}")
                await trio.sleep(backoff.delay)
                entry.restarts += 1
        finally:
            self.keeper.table.remove(entry)

    @asynccontextmanager
    async def _one_zygote(self) -> AsyncIterator[Process]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            netns = [] if self.daemon.netns is None else [self.daemon.netns]
            launch = replace(self.daemon, arguments=("-m", "ztunnel.zygote")).launch("AMBIENT_ZYGOTE_FD")
            process = await self.keeper.init.start(launch, [*netns, theirs.fileno()])
        self._zygote = Zygote(self.keeper.init, ours)
        self._zygote_there.set()
        try:
            yield process
        finally:
            self._zygote.close()
            self._zygote, self._zygote_there = None, trio.Event()
            with trio.CancelScope(shield=True):
                if process.running:
                    await self.keeper.init.kill(process)


async def _says_ready(fd: int) -> bool:
    """Wait for the word of a new process; False at its end, or if it is late. Closes *fd*."""
    try:
        with trio.move_on_after(READY_SECONDS):
            await trio.lowlevel.wait_readable(fd)
            return os.read(fd, 16) != b""
        return False
    finally:
        os.close(fd)
