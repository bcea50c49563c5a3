"""Daemons: processes of the mesh itself, each with a line to control, started again when they end."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field

import trio

from ambient.engine.rpc import AdminClient
from ambient.errors import Unavailable
from ambient.fabric.initclient import InitClient, Process
from ambient.fabric.launch import Launch
from ambient.fabric.restart_plan import Backoff
from ambient.fabric.table import Entry, Table

# From SIGTERM to SIGKILL for a daemon; longer than a proxy's drain (5 s by default, as Istio's).
PATIENCE_SECONDS = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """What to run and where.

    Attributes:
        arguments: After ``python``, for example ``("-m", "ztunnel")``.
        netns: Descriptor of the network namespace it lives in; None for the outer one.
        pod: Its pod's uid, for waypoints and sidecars.
        pod_name: ``namespace/name`` of that pod.
        restart: How soon it is started again.
    """

    name: str
    role: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    log: str
    node: str = ""
    pod: str = ""
    pod_name: str = ""
    netns: int | None = field(default=None)
    restart: Backoff = field(default=Backoff())

    def launch(self, *fd_names: str) -> Launch:
        """The request to init."""
        return Launch(
            argv=(sys.executable, "-P", *self.arguments),
            env=self.environment,
            log=self.log,
            netns=self.netns is not None,
            fd_names=fd_names,
        )

    def entry(self) -> Entry:
        """Its line in the table of processes."""
        return Entry(name=self.name, role=self.role, log=self.log, node=self.node, pod=self.pod_name)


@dataclass(slots=True)
class Keeper:
    """Keeps daemons running and attached.

    Args:
        control: The fabric's line to control.
    """

    init: InitClient
    control: AdminClient
    table: Table

    async def keep(
        self, daemon: Daemon, *, task_status: trio.TaskStatus[Entry] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run *daemon* until cancelled; then stop it and return."""
        entry = self.table.add(daemon.entry())
        backoff = daemon.restart
        try:
            while True:
                entry.process = await self._start(daemon)
                if entry.restarts == 0:
                    task_status.started(entry)
                born = trio.current_time()
                status = await entry.process.wait()
                backoff = backoff.ended(trio.current_time() - born)
                note(f"{daemon.name} ended with {status}; next start in {backoff.delay:g} s")
                await trio.sleep(backoff.delay)
                entry.restarts += 1
        finally:
            with trio.CancelScope(shield=True):
                if entry.process is not None and entry.process.running:
                    await self.init.stop(entry.process, PATIENCE_SECONDS)
            self.table.remove(entry)

    async def _start(self, daemon: Daemon) -> Process:
        with ExitStack() as stack:
            ours, theirs = socket.socketpair()
            stack.enter_context(ours)
            stack.enter_context(theirs)
            # Before its start, so that control knows whom it hears.
            try:
                await self.attach(daemon, ours)
            except Unavailable:
                # Without control it could do nothing; what runs already goes on with what it knows.
                note(f"{daemon.name} cannot start: control is gone")
                await trio.sleep_forever()
            fds = [theirs.fileno()] if daemon.netns is None else [daemon.netns, theirs.fileno()]
            return await self.init.start(daemon.launch("AMBIENT_CONTROL_FD"), fds)

    async def attach(self, daemon: Daemon, end: socket.socket) -> None:
        """Give control its *end* of the line to *daemon*.

        Raises:
            Unavailable: control has gone.
        """
        await self.control.call(
            "attach", fds=[end.fileno()], role=daemon.role, node=daemon.node, pod=daemon.pod
        )


def note(text: str) -> None:
    """Write a line to the supervisor's log."""
    os.write(2, f"{text}\n".encode())
