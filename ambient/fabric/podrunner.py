"""One pod: its place, its proxy, its containers, and what control hears of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from ambient.errors import AmbientError
from ambient.fabric import sidecars
from ambient.fabric.containers import ContainerRunner, Place
from ambient.fabric.daemons import Keeper, note
from ambient.fabric.env_plan import PodFacts
from ambient.fabric.nodes import Node
from ambient.fabric.places import Lodging, Places, Refused
from ambient.fabric.podsource import PodOrder
from ambient.fabric.restart_plan import Backoff
from ambient.fabric.table import Entry

# A mesh on a desk is stopped while somebody waits: no pod gets more than this, whatever its
# terminationGracePeriodSeconds (Kubernetes' default is 30).
LONGEST_PATIENCE = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all pods share.

    Attributes:
        environment: For daemons in pods.
        changed: Called whenever something about a pod did.
    """

    keeper: Keeper
    nodes: Mapping[str, Node]
    run_dir: str
    environment: Mapping[str, str]
    places: Places
    changed: Callable[[], None]


class PodRunner:
    """One pod from its order to its end."""

    def __init__(self, around: Surroundings, order: PodOrder) -> None:
        self.order = order
        self.reason = "not started"
        self._around = around
        self._node = around.nodes[order.node]
        self._lodging = Lodging()
        self.refused = False
        self._containers: list[ContainerRunner] = []
        self._proxy: sidecars.Proxy | None = None
        self._failed = False
        self._scope = trio.CancelScope()
        self._dirty = trio.Event()

    @property
    def ready(self) -> bool:
        """Whether services may send to it."""
        everything = self._parts()
        return bool(everything) and not self._failed and all(each.ready for each in everything)

    @property
    def netns(self) -> int | None:
        """Descriptor of its network namespace, while it has one."""
        return self._lodging.netns

    def _parts(self) -> list[ContainerRunner | sidecars.Proxy]:
        return [*self._containers, *([self._proxy] if self._proxy is not None else [])]

    def stop(self) -> None:
        """End it, gracefully."""
        self._scope.cancel()

    def changed(self) -> None:
        """Something that control wants to know has changed."""
        self._dirty.set()
        self._around.changed()

    async def run(self) -> None:
        """Run the pod until it is stopped."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_changes)
            with self._scope:
                await self._live_again()
            nursery.cancel_scope.cancel()

    async def _live_again(self) -> None:
        """Make the pod anew whenever the whole of it has failed: wiring, or its pause process killed."""
        backoff = Backoff()
        while not self.refused:
            born = trio.current_time()
            try:
                async with self._around.places.lodge(self._node, self.order) as self._lodging:
                    await self._live()
            except* (OSError, AmbientError) as group:
                self._fail(first_leaf(group))
            backoff = backoff.ended(trio.current_time() - born)
            await trio.sleep(backoff.delay)
        await trio.sleep_forever()

    def _fail(self, exc: BaseException) -> None:
        self._failed, self.reason = True, str(exc)
        self.refused = isinstance(exc, Refused)
        self._containers, self._proxy = [], None
        note(f"pod {self.order.full_name}: {exc}")
        self.changed()

    async def _live(self) -> None:
        """Proxies first, then the containers, until cancelled."""
        self._failed, self.reason = False, "starting"
        self.changed()
        async with trio.open_nursery() as outer:
            outer.start_soon(self._watch_lodging)
            netns = self._lodging.netns
            if netns is not None and (self.order.mode == "sidecar" or self.order.role == "waypoint"):
                self._proxy = sidecars.Proxy(self._around, self._node, self.order, netns, self.changed)
                await outer.start(self._proxy.run)
            async with trio.open_nursery() as inner:
                self._containers = self._make_containers()
                for runner in self._containers:
                    inner.start_soon(self._run_container, runner)
                self.changed()
                await trio.sleep_forever()

    async def _watch_lodging(self) -> None:
        await self._lodging.lost()
        raise AmbientError("its namespaces are gone: somebody killed the process that held them")

    async def _run_container(self, runner: ContainerRunner) -> None:
        table = self._around.keeper.table
        table.add(runner.entry)
        try:
            await runner.run()
        finally:
            table.remove(runner.entry)

    def _make_containers(self) -> list[ContainerRunner]:
        order = self.order
        if order.role == "waypoint":
            return []
        facts = PodFacts(
            uid=order.uid,
            name=order.name,
            namespace=order.namespace,
            node=order.node,
            node_ip=self._node.plan.ip,
            addresses=order.addresses,
            spec=order.spec,
        )
        place = Place(
            pause=self._lodging.pause,
            probed_from=self._lodging.probed_from,
            probed_as_node=self._lodging.probed_from == self._node.netns,
            home=self._lodging.home,
            patience=min(LONGEST_PATIENCE, order.spec.termination_grace_seconds),
        )
        init = self._around.keeper.init
        return [
            ContainerRunner(init, each, facts, place, self._entry(each.name), self.changed)
            for each in order.spec.containers
        ]

    def _entry(self, container: str) -> Entry:
        order = self.order
        return Entry(
            name=f"app/{order.full_name}/{container}",
            role="app",
            log=f"{self._around.run_dir}/logs/{order.file_name}_{container}.log",
            node=order.node,
            pod=order.full_name,
            container=container,
        )

    # Reports ---------------------------------------------------------------------------------

    async def _report_changes(self) -> None:
        last: dict[str, Any] = {}
        while True:
            await self._dirty.wait()
            self._dirty = trio.Event()
            status = self._status()
            if status != last:
                last = status
                with suppress(AmbientError):
                    await self._around.keeper.control.call("pod_status", **status)

    def _status(self) -> dict[str, Any]:
        entries = [runner.entry for runner in self._containers]
        if self._proxy is not None and self.order.role == "waypoint":
            entries = [self._proxy.entry]
        first = next((entry.process for entry in entries if entry.running), None)
        return {
            "uid": self.order.uid,
            "phase": self._phase(entries),
            "ready": self.ready,
            "pid": first.host_pid if first is not None else 0,
            "netns": self._lodging.netns_path,
            "started": first.started if first is not None else 0.0,
            "restarts": sum(entry.restarts for entry in entries),
            "reason": self._explain(),
            "containers": self._container_statuses(),
        }

    def _phase(self, entries: list[Entry]) -> str:
        if self._failed:
            return "Failed"
        return "Running" if entries and all(entry.process is not None for entry in entries) else "Pending"

    def _explain(self) -> str:
        if self._failed:
            return self.reason
        self.reason = "; ".join(each.reason for each in self._parts() if each.reason and not each.ready)
        return self.reason

    def _container_statuses(self) -> list[dict[str, Any]]:
        return [
            {
                "name": part.entry.container or part.entry.role,
                "pid": part.entry.pid,
                "ready": part.ready,
                "restarts": part.entry.restarts,
            }
            for part in self._parts()
        ]


def first_leaf(group: BaseException) -> BaseException:
    """The first exception in a group of groups."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
