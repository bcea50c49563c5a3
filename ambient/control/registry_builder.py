"""Builds registries, and makes again only what can have changed.

Floor 3, no I/O. A mesh of a thousand pods publishes while every one of them moves: what is cheap once, a
thousand pods a registry, is not cheap a thousand times. Two rules keep it right: everything that a value is
made of is compared by identity or by value, and values that say the same as before are the objects of before,
so that whoever compares registries sees it at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from ambient.control.pods import Pod
from ambient.control.registry_plan import Registry
from ambient.control.resources_plan import Addresses, services_of, workloads_of
from ambient.control.store_plan import Store
from ambient.control.waypoints_plan import Waypoint, is_waypoint, waypoint_of
from ambient.model.authorization import Security, convert
from ambient.model.policy import Policy
from ambient.model.service import Service
from ambient.model.workload import Workload

Names: TypeAlias = frozenset[tuple[str, str]]


class RegistryBuilder:
    """Remembers what it made last.

    Args:
        addresses: (namespace, name) -> the virtual addresses of a service.
    """

    def __init__(self, addresses: Addresses) -> None:
        self._addresses = addresses
        self._store: Store | None = None
        self._programmed: Names = frozenset()
        self._waypoints: dict[tuple[str, str], Waypoint] = {}
        self._security: Security = convert(())
        self._services: dict[str, Service] = {}
        self._policies: dict[str, Policy] = {}
        self._made: dict[str, tuple[tuple[Any, ...], Workload]] = {}
        # The registry that was made last, and of the objects as they are.
        self._published: Registry | None = None

    def build(
        self,
        before: Registry,
        store: Store,
        programmed: Iterable[tuple[str, str]],
        pods: Mapping[str, Pod],
        touched: Iterable[str] | None = None,
    ) -> Registry:
        """The registry after *before*: *before* itself if nothing is different.

        Args:
            pods: All of them, by uid.
            touched: The only ones that can have changed, come or gone since the last call; None: any.
        """
        self._look_at(store, frozenset(programmed))
        if before is not self._published:
            touched = None  # Anything may be different.
        workloads = self._workloads(store, pods, touched, before.workloads)
        if workloads is before.workloads and before is self._published:
            return before
        made = Registry(
            version=before.version + 1,
            workloads=workloads,
            services=_keep(before.services, self._services),
            policies=_keep(before.policies, self._policies),
        )
        self._published = before if made.same_as(before) else made
        return self._published

    def waypoints(
        self, store: Store, programmed: Iterable[tuple[str, str]]
    ) -> dict[tuple[str, str], Waypoint]:
        """Every waypoint, by namespace and name."""
        self._look_at(store, frozenset(programmed))
        return self._waypoints

    def security(self, store: Store) -> Security:
        """What the security objects mean."""
        self._look_at(store, self._programmed)
        return self._security

    def _look_at(self, store: Store, programmed: Names) -> None:
        """Make again what the objects alone decide."""
        if store is self._store and programmed == self._programmed:
            return
        if store is not self._store:
            self._security = convert(each.object for each in store.entries.values())
        self._store, self._programmed = store, programmed
        gateways = [each for each in store.of_kind("Gateway") if is_waypoint(each)]
        made = [waypoint_of(each, (each.namespace, each.name) in programmed) for each in gateways]
        self._waypoints = {(each.namespace, each.name): each for each in made}
        self._services = services_of(store, self._waypoints, self._addresses)
        self._policies = {policy.key: policy for policy in self._security.policies}
        self._made.clear()
        self._published = None

    def _workloads(
        self,
        store: Store,
        pods: Mapping[str, Pod],
        touched: Iterable[str] | None,
        before: Mapping[str, Workload],
    ) -> Mapping[str, Workload]:
        """All of them; *before* itself if none is different."""
        looked_at = {*pods, *self._made} if touched is None else set(touched)
        again: list[Pod] = []
        facts: dict[str, tuple[Any, ...]] = {}
        for uid in sorted(looked_at):
            pod = pods.get(uid)
            if pod is None or not pod.addresses:
                self._made.pop(uid, None)
                continue
            facts[uid] = _facts(pod)
            if uid not in self._made or self._made[uid][0] != facts[uid]:
                again.append(pod)
        for uid, workload in workloads_of(store, again, self._waypoints, self._security).items():
            self._made[uid] = (facts[uid], workload)
        if touched is None:
            return _keep(before, {uid: workload for uid, (_, workload) in self._made.items()})
        return _with(before, {uid: self._made[uid][1] if uid in self._made else None for uid in looked_at})


def _facts(pod: Pod) -> tuple[Any, ...]:
    """Everything of a pod that ``workloads_of`` reads and that can change while the pod lives."""
    return pod.status.ready, pod.ending, pod.mode, pod.capture.advertised, pod.addresses, pod.labels


def _with(before: Mapping[str, Workload], changed: Mapping[str, Workload | None]) -> Mapping[str, Workload]:
    """*before* with what has *changed* (None: gone); *before* itself if that says the same."""
    different = {uid: now for uid, now in changed.items() if before.get(uid) != now}
    if not different:
        return before
    after = {**before}
    for uid, now in different.items():
        if now is None:
            del after[uid]
        else:
            after[uid] = now
    return after


def _keep(before: Mapping[str, Any], after: Mapping[str, Any]) -> Mapping[str, Any]:
    """*after*, with the very values of *before* where they are equal."""
    kept = {}
    for key, value in after.items():
        old = before.get(key)
        kept[key] = old if old is value or old == value else value
    return before if kept == before else kept
