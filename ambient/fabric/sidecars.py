"""Proxies that live in a pod's network: its sidecar, or the waypoint that the pod is."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from ambient.fabric import polling, probes
from ambient.fabric.daemons import Daemon, note
from ambient.fabric.nodes import Node, node_environment
from ambient.fabric.podsource import PodOrder
from ambient.fabric.table import Entry
from ambient.redirect import backend
from ambient.redirect.plan import SIDECAR_TABLE, Capture

if TYPE_CHECKING:
    from ambient.fabric.podrunner import Surroundings

READY_PORT = 15021
# A real Envoy needs a second or two on a busy machine; after that people should hear why not.
PATIENCE_SECONDS = 4.0
# Enough for the last line of a log.
TAIL_BYTES = 4096


def environment(base: Mapping[str, str], run_dir: str, node: Node, order: PodOrder) -> dict[str, str]:
    """What the proxy is told about its pod."""
    return {
        **node_environment(base, run_dir, node.plan),
        "POD_NAME": order.name,
        "POD_NAMESPACE": order.namespace,
        "POD_UID": order.uid,
        "POD_IP": order.addresses[0],
        "INSTANCE_IP": order.addresses[0],
        "SERVICE_ACCOUNT": order.spec.service_account,
    }


def daemon(base: Mapping[str, str], run_dir: str, node: Node, order: PodOrder, netns: int) -> Daemon:
    """The program of *order*'s proxy."""
    role = "waypoint" if order.role == "waypoint" else "sidecar"
    engine = ("--engine", "envoy") if order.engine == "envoy" else ()
    return Daemon(
        name=f"{role}/{order.full_name}",
        role=role,
        arguments=("-m", "waypoint", "--role", role, *engine),
        environment=environment(base, run_dir, node, order),
        log=f"{run_dir}/logs/{order.file_name}_{role}.log",
        node=node.name,
        pod=order.uid,
        pod_name=order.full_name,
        netns=netns,
    )


def last_line(path: str) -> str:
    """The last line of a log, for a person who wonders."""
    with suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "it says nothing")
    return "it has no log"


class Proxy:
    """One proxy of one pod; ready while it says so on its readiness port."""

    def __init__(
        self, around: Surroundings, node: Node, order: PodOrder, netns: int, changed: Callable[[], None]
    ) -> None:
        self._daemon = daemon(around.environment, around.run_dir, node, order, netns)
        self._keeper = around.keeper
        self._order = order
        self._netns = netns
        self._changed = changed
        self.entry: Entry = self._daemon.entry()
        self.ready = False
        self.reason = ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run it until cancelled; started when it serves and the pod's traffic goes its way.

        Raises:
            OSError: the rules cannot be installed.
        """
        async with trio.open_nursery() as nursery:
            self.entry = await nursery.start(self._keeper.keep, self._daemon)
            nursery.start_soon(self._complain)
            await self._until_ready()
            if self._daemon.role == "sidecar":
                backend.install(self._netns, Capture(table=SIDECAR_TABLE))
            task_status.started()
            await self._follow()

    async def _complain(self) -> None:
        """Say why the pod does not come up, while it does not; a proxy is waited for as long as it takes."""
        await trio.sleep(PATIENCE_SECONDS)
        while not self.ready:
            self.reason = f"{self._daemon.role} is not ready: {last_line(self._daemon.log)}"
            self._changed()
            await trio.sleep(PATIENCE_SECONDS)

    async def _follow(self) -> None:
        while True:
            process = self.entry.process
            assert process is not None
            await process.wait()
            self._set_ready(False)
            note(f"{self._daemon.name} is away")
            await self._until_ready()

    async def _until_ready(self) -> None:
        await polling.until(self._serves)
        self._set_ready(True)

    async def _serves(self) -> bool:
        if not self.entry.running:
            return False
        return await probes.is_listening(self._netns, "127.0.0.1", READY_PORT)

    def _set_ready(self, ready: bool) -> None:
        self.ready = ready
        self.reason = "" if ready else f"{self._daemon.role} is not ready"
        self._changed()
