"""Pods: what control orders, the fabric runs, one task each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from ambient.engine.rpc import AdminClient
from ambient.errors import AmbientError, Unavailable
from ambient.fabric import sidecars
from ambient.fabric.containers import ContainerRunner, Place
from ambient.fabric.daemons import Keeper, note
from ambient.fabric.env_plan import PodFacts
from ambient.fabric.nodes import Node
from ambient.fabric.places import Lodging, Places, Refused
from ambient.fabric.podsource import PodOrder, read_order
from ambient.fabric.table import Entry

# A mesh on a desk is stopped while somebody waits: no pod gets more than this, whatever its
# terminationGracePeriodSeconds (Kubernetes' default is 30).
LONGEST_PATIENCE = 5.0


@dataclass(slots=True, kw_only=True)
class Pods:
    """All pods of the mesh.

    Args:
        environment: For daemons in pods.
    """

    keeper: Keeper
    nodes: Mapping[str, Node]
    run_dir: str
    environment: Mapping[str, str]
    places: Places
    _running: dict[str, PodRunner] = field(default_factory=dict)
    _by_name: dict[str, trio.Event] = field(default_factory=dict)
    _changed: trio.Event = field(default_factory=trio.Event)

    async def follow(self, control: AdminClient) -> None:
        """Do what control orders until cancelled; then stop every pod."""
        async with trio.open_nursery() as nursery:
            with suppress(Unavailable):
                async with control.stream("watch_pods") as events:
                    async for event in events:
                        self._obey(nursery, event)
            # The pods go on, and so do the proxies with what they know.
            note("control is gone: nothing can be changed until ambient down and up")
            await trio.sleep_forever()

    def _obey(self, nursery: trio.Nursery, event: Mapping[str, Any]) -> None:
        if event["type"] == "add":
            self._add(nursery, read_order(event["pod"]))
        else:
            self._remove(event["pod"]["uid"])

    def _add(self, nursery: trio.Nursery, order: PodOrder) -> None:
        if order.uid in self._running:
            return
        runner = self._running[order.uid] = PodRunner(self, order)
        nursery.start_soon(self._run, runner)

    def _remove(self, uid: str) -> None:
        if uid in self._running:
            self._running[uid].stop()

    async def _run(self, runner: PodRunner) -> None:
        # The same name, and so the same addresses, again is a restart: the old pod must be gone.
        name = runner.order.full_name
        before = self._by_name.get(name)
        gone = self._by_name[name] = trio.Event()
        try:
            if before is not None:
                await before.wait()
            await runner.run()
        finally:
            gone.set()
            if self._by_name.get(name) is gone:
                del self._by_name[name]
            del self._running[runner.order.uid]
            self.ring()

    def ring(self) -> None:
        """Tell whoever waits that something about the pods has changed."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_ready(self, at_least: int = 0) -> int:
        """Wait until every pod is ready, and return how many there are."""
        while not self._all_ready(at_least):
            await self._changed.wait()
        return len(self._running)

    def _all_ready(self, at_least: int) -> bool:
        settled = all(each.ready or each.refused for each in self._running.values())
        return settled and len(self._running) >= at_least

    def unready(self) -> dict[str, str]:
        """``namespace/name`` -> why, of the pods that are not ready."""
        return {each.order.full_name: each.reason for each in self._running.values() if not each.ready}


class PodRunner:
    """One pod from its order to its end."""

    def __init__(self, pods: Pods, order: PodOrder) -> None:
        self.order = order
        self.reason = "not started"
        self._pods = pods
        self._node = pods.nodes[order.node]
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

    def _parts(self) -> list[ContainerRunner | sidecars.Proxy]:
        return [*self._containers, *([self._proxy] if self._proxy is not None else [])]

    def stop(self) -> None:
        """End it, gracefully."""
        self._scope.cancel()

    def changed(self) -> None:
        """Something that control wants to know has changed."""
        self._dirty.set()
        self._pods.ring()

    async def run(self) -> None:
        """Run the pod until it is stopped."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_changes)
            with self._scope:
                failure: BaseException | None = None
                try:
                    async with self._pods.places.lodge(self._node, self.order) as self._lodging:
                        await self._live()
                except* (OSError, AmbientError) as group:
                    failure = group.exceptions[0]
                if failure is not None:
                    await self._fail(failure)
            nursery.cancel_scope.cancel()

    async def _fail(self, exc: BaseException) -> None:
        while isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        self._failed, self.reason = True, str(exc)
        self.refused = isinstance(exc, Refused)
        note(f"pod {self.order.full_name}: {exc}")
        self.changed()
        await trio.sleep_forever()

    async def _live(self) -> None:
        """Proxies first, then the containers, until cancelled."""
        self.reason = "starting"
        self.changed()
        async with trio.open_nursery() as outer:
            netns = self._lodging.netns
            if netns is not None and (self.order.mode == "sidecar" or self.order.role == "waypoint"):
                self._proxy = sidecars.Proxy(self._pods, self._node, self.order, netns, self.changed)
                await outer.start(self._proxy.run)
            async with trio.open_nursery() as inner:
                self._containers = self._make_containers()
                for runner in self._containers:
                    inner.start_soon(self._run_container, runner)
                self.changed()
                await trio.sleep_forever()

    async def _run_container(self, runner: ContainerRunner) -> None:
        table = self._pods.keeper.table
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
            node_netns=self._node.netns,
            home=self._lodging.home,
            patience=min(LONGEST_PATIENCE, order.spec.termination_grace_seconds),
        )
        init = self._pods.keeper.init
        return [
            ContainerRunner(init, each, facts, place, self._entry(each.name), self.changed)
            for each in order.spec.containers
        ]

    def _entry(self, container: str) -> Entry:
        order = self.order
        return Entry(
            name=f"app/{order.full_name}/{container}",
            role="app",
            log=f"{self._pods.run_dir}/logs/{order.file_name}_{container}.log",
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
                    await self._pods.keeper.control.call("pod_status", **status)

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
