"""Starting and removing waypoints without losing a request.

Floor 3. Coming: the pod is ready before anybody is told to use it. Going: nobody is told to use it any
more, everybody has heard, and what is under way gets a moment, before the pod is stopped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import trio

from ambient.control.cluster import Cluster
from ambient.control.params import take, take_one_of
from ambient.control.pods_plan import ENGINE_ANNOTATION
from ambient.control.waypoints_plan import (
    CLASS,
    USE_WAYPOINT,
    USE_WAYPOINT_NAMESPACE,
    WAYPOINT_FOR,
    Waypoint,
)
from ambient.engine.rpc import FAILED, RpcError
from ambient.errors import ConfigError
from ambient.model.manifest import parse_object
from ambient.model.objects import Object
from ambient.wire.admin import ExitCode

# istioctl's --waypoint-timeout.
WAIT_SECONDS = 90.0
# From "everybody has heard" to SIGTERM: requests that were on the way to the waypoint arrive, and its
# own graceful stop lets them finish. Picked, not measured.
DRAIN_SECONDS = 0.5

# It names a pod, a service and a service account: an RFC 1123 label, with room for the pod's suffix.
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,40}[a-z0-9])?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The parameters of ``waypoint_apply`` and ``waypoint_delete``, read."""

    namespace: str
    name: str = "waypoint"
    traffic: str = "service"
    enroll_namespace: bool = False
    overwrite: bool = False
    engine: str = "ambient"
    wait: bool = True
    timeout: float = WAIT_SECONDS

    @classmethod
    def read(cls, params: Mapping[str, Any]) -> Request:
        """Read a call.

        Raises:
            ConfigError: a parameter is missing or of the wrong form.
        """
        name = take(params, "name", str, "waypoint")
        if name == "none" or not _NAME.fullmatch(name):
            raise ConfigError(f"not a name for a waypoint: {name!r}")
        return cls(
            namespace=take(params, "namespace", str),
            name=name,
            traffic=take_one_of(params, "traffic", ("service", "workload", "all", "none"), "service"),
            enroll_namespace=take(params, "enroll_namespace", bool, False),
            overwrite=take(params, "overwrite", bool, False),
            engine=take_one_of(params, "engine", ("ambient", "envoy"), "ambient"),
            wait=take(params, "wait", bool, True),
            timeout=take(params, "timeout", float, WAIT_SECONDS),
        )


class WaypointKeeper:
    """Serves the waypoint calls; one at a time."""

    def __init__(self, cluster: Cluster, *, drain_seconds: float = DRAIN_SECONDS) -> None:
        self._cluster = cluster
        self._drain_seconds = drain_seconds
        self._lock = trio.Lock()

    async def apply(self, request: Request) -> dict[str, Any]:
        """Start a waypoint, or leave it as it is if it is there already.

        Raises:
            RpcError: the namespace is unknown or uses another waypoint (1), or the time ran out (124).
        """
        async with self._lock:
            self._check(request)
            gateway = gateway_object(request)
            store, outcomes = self._cluster.store.apply([gateway], self._cluster.clock())
            self._cluster.commit(store)
            if request.wait:
                await self._within(request.timeout, request, self._is_ready)
            if request.enroll_namespace:
                self._label(request.namespace, request.name)
                await self._settle()
            return {**self._line(self._found(request)), "result": outcomes[-1].result}

    async def delete(self, request: Request) -> dict[str, Any]:
        """Take a waypoint away.

        Raises:
            RpcError: there is none of that name.
        """
        async with self._lock:
            waypoint = self._found(request)
            self._forget(waypoint)
            await self._settle()
            await trio.sleep(self._drain_seconds)
            key = ("Gateway", request.namespace, request.name)
            store, _ = self._cluster.store.delete([key])
            self._cluster.commit(store)
            await self._within(request.timeout, request, self._is_gone)
            return {"namespace": request.namespace, "name": request.name, "result": "deleted"}

    def list(self) -> list[dict[str, Any]]:
        """Every waypoint."""
        return [self._line(each) for _, each in sorted(self._cluster.waypoints().items())]

    def _check(self, request: Request) -> None:
        store = self._cluster.store
        if store.get("Namespace", "", request.namespace) is None:
            raise RpcError(FAILED, f"namespace {request.namespace!r} does not exist")
        if store.get("Service", request.namespace, request.name) is not None:
            raise RpcError(FAILED, f"service {request.name!r} exists already; give another --name")
        used = store.labels_of_namespace(request.namespace).get(USE_WAYPOINT, request.name)
        if request.enroll_namespace and used != request.name and not request.overwrite:
            raise RpcError(FAILED, f"namespace {request.namespace!r} uses waypoint {used!r}; see --overwrite")

    def _found(self, request: Request) -> Waypoint:
        found = self._cluster.waypoints().get((request.namespace, request.name))
        if found is None:
            raise RpcError(FAILED, f"no waypoint {request.name!r} in namespace {request.namespace!r}")
        return found

    def _label(self, namespace: str, name: str | None) -> None:
        key = ("Namespace", "", namespace)
        self._cluster.commit(self._cluster.store.label(key, {USE_WAYPOINT: name}))

    def _forget(self, waypoint: Waypoint) -> None:
        """Take the label away wherever it names this waypoint."""
        store = self._cluster.store
        for key, entry in store.entries.items():
            if names(entry.object, waypoint):
                store = store.label(key, {USE_WAYPOINT: None, USE_WAYPOINT_NAMESPACE: None})
        self._cluster.commit(store)

    async def _settle(self) -> None:
        await self._cluster.distribution.settled(self._cluster.registry().version)

    async def _within(self, seconds: float, request: Request, condition: Any) -> None:
        with trio.move_on_after(seconds) as scope:
            await self._cluster.bell.until(lambda: condition(request))
            await self._settle()
        if scope.cancelled_caught:
            what = f"waypoint {request.namespace}/{request.name}"
            raise RpcError(
                ExitCode.TIMED_OUT, f"{what}: not done within {seconds:g} s; see: ambient get pods"
            )

    def _is_ready(self, request: Request) -> bool:
        owner = f"Gateway/{request.name}"
        mine = [p for p in self._cluster.pods() if p.namespace == request.namespace and p.owner == owner]
        return bool(mine) and all(pod.ready for pod in mine)

    def _is_gone(self, request: Request) -> bool:
        owner = f"Gateway/{request.name}"
        return not any(p.namespace == request.namespace and p.owner == owner for p in self._cluster.pods())

    def _line(self, waypoint: Waypoint) -> dict[str, Any]:
        store = self._cluster.store
        users = [each.object for each in store.entries.values() if names(each.object, waypoint)]
        return {
            "namespace": waypoint.namespace,
            "name": waypoint.name,
            "traffic": waypoint.traffic,
            "programmed": waypoint.programmed,
            "service": waypoint.key,
            "used_by": [str(each) for each in users],
        }


def names(obj: Object, waypoint: Waypoint) -> bool:
    """Whether the labels of *obj* name *waypoint*."""
    if obj.labels.get(USE_WAYPOINT) != waypoint.name:
        return False
    own = obj.name if obj.kind == "Namespace" else obj.namespace
    return obj.labels.get(USE_WAYPOINT_NAMESPACE, own) == waypoint.namespace


def gateway_object(request: Request) -> Object:
    """The Gateway that stands for a waypoint, as ``istioctl waypoint generate`` writes it."""
    annotations = {ENGINE_ANNOTATION: request.engine} if request.engine != "ambient" else {}
    return parse_object(
        {
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "Gateway",
            "metadata": {
                "name": request.name,
                "namespace": request.namespace,
                "labels": {WAYPOINT_FOR: request.traffic},
                "annotations": annotations,
            },
            "spec": {
                "gatewayClassName": CLASS,
                "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
            },
        },
        origin="waypoint apply",
    )
