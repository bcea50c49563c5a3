"""Pods: what control orders, the fabric runs, one task each."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import trio

from ambient.engine.netns import netns_identity
from ambient.engine.rpc import AdminClient
from ambient.errors import Unavailable
from ambient.fabric.daemons import Keeper, note
from ambient.fabric.guests_plan import Identity
from ambient.fabric.nodes import Node
from ambient.fabric.places import Places
from ambient.fabric.podrunner import PodRunner, Surroundings
from ambient.fabric.podsource import PodOrder, read_order


class Pods:
    """All pods of the mesh.

    Args:
        environment: For daemons in pods.
    """

    def __init__(
        self,
        keeper: Keeper,
        nodes: Mapping[str, Node],
        run_dir: str,
        environment: Mapping[str, str],
        places: Places,
    ) -> None:
        self.keeper = keeper
        self._around = Surroundings(
            keeper=keeper,
            nodes=nodes,
            run_dir=run_dir,
            environment=environment,
            places=places,
            changed=self._ring,
        )
        self._running: dict[str, PodRunner] = {}
        self._by_name: dict[str, trio.Event] = {}
        self._changed = trio.Event()

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
        runner = self._running[order.uid] = PodRunner(self._around, order)
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
            self._ring()

    def _ring(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_ready(self, at_least: int = 0, names: frozenset[str] = frozenset()) -> int:
        """Wait until every pod is ready, and return how many there are.

        Args:
            names: ``namespace/name`` of pods that have to be among them.
        """
        while not self._all_ready(at_least, names):
            await self._changed.wait()
        return len(self._running)

    def _all_ready(self, at_least: int, names: frozenset[str]) -> bool:
        settled = all(each.ready or each.refused for each in self._running.values())
        known = {each.order.full_name for each in self._running.values()}
        return settled and len(known) >= at_least and names <= known

    def namespaces(self) -> dict[Identity, str]:
        """The network namespace of each pod -> ``pod namespace/name``."""
        return {
            netns_identity(each.netns): f"pod {each.order.full_name}"
            for each in self._running.values()
            if each.netns is not None
        }

    def unready(self) -> dict[str, str]:
        """``namespace/name`` -> why, of the pods that are not ready."""
        return {each.order.full_name: each.reason for each in self._running.values() if not each.ready}
