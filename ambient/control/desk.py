"""What the command line may ask of control.

Floor 3. Calls of the admin wire on ``<run>/control.sock``; each method reads its parameters, asks the part
that knows, and answers plain data.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from ambient.control.authz import check
from ambient.control.cluster import Cluster
from ambient.control.describe import describe
from ambient.control.enrollment import Enroller
from ambient.control.enrollment_plan import Request as EnrollRequest
from ambient.control.params import take
from ambient.control.pods_plan import wanted_pods
from ambient.control.status import status
from ambient.control.store_plan import Key, Outcome, Store
from ambient.control.views import dump, object_view, pod_view
from ambient.control.waypoints import Request as WaypointRequest
from ambient.control.waypoints import WaypointKeeper
from ambient.engine.rpc import FAILED, Call, Method, RpcError
from ambient.errors import ConfigError
from ambient.model.authorization import convert
from ambient.model.manifest import parse_object

# How long an answer waits for slow daemons; picked, not measured.
IN_FORCE_SECONDS = 2.0

# Kinds that live outside namespaces.
CLUSTER_SCOPED = ("Namespace", "Node")


class Desk:
    """Serves the command line."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._enroller = Enroller(cluster)
        self._waypoints = WaypointKeeper(cluster)

    def methods(self) -> Mapping[str, Method]:
        """By name, for ``serve_admin``."""
        return {
            "apply": self.apply,
            "delete": self.delete,
            "get": self.get,
            "enroll": self.enroll,
            "waypoint_apply": self.waypoint_apply,
            "waypoint_delete": self.waypoint_delete,
            "waypoint_list": self.waypoint_list,
            "authz_check": self.authz_check,
            "describe": self.describe,
            "status": self.status,
            "dump": self.dump,
        }

    async def apply(self, call: Call) -> dict[str, Any]:
        """Create or change objects, all of them or none."""
        bodies = take(call.params, "objects", list)
        objects = [parse_object(_body(each), str(each.get("origin", ""))) for each in bodies]
        check = partial(check_store, capacity=self._cluster.book.capacity)
        store, outcomes = self._cluster.store.apply(objects, self._cluster.clock(), check)
        self._cluster.commit(store)
        await self._in_force()
        warnings = list(self._cluster.security().warnings)
        return {"objects": [each.as_dict() for each in outcomes], "warnings": warnings}

    async def delete(self, call: Call) -> dict[str, Any]:
        """Delete objects; a pod of a Deployment is started anew instead, as in Kubernetes."""
        keys = [_key(each) for each in take(call.params, "objects", list)]
        for key in keys:
            self._require(key)
        stored = [key for key in keys if key in self._cluster.store.entries or key[0] != "Pod"]
        owned = (self._cluster.pod(key[1], key[2]) for key in keys if key not in stored)
        again = [pod for pod in owned if pod is not None]
        store, outcomes = self._cluster.store.delete(stored)
        for pod in again:
            pod.ending = True
        self._cluster.commit(store)
        await self._in_force()
        outcomes += tuple(Outcome("Pod", pod.namespace, pod.name, "deleted") for pod in again)
        return {"objects": [each.as_dict() for each in outcomes]}

    async def _in_force(self) -> None:
        """Return when the daemons have applied it: a script need not guess. A slow one holds up nobody."""
        distribution = self._cluster.distribution
        await distribution.settled(self._cluster.registry().version, IN_FORCE_SECONDS)

    def _require(self, key: Key) -> None:
        kind, namespace, name = key
        if key not in self._cluster.store.entries and (
            kind != "Pod" or self._cluster.pod(namespace, name) is None
        ):
            place = f" in namespace {namespace!r}" if namespace else ""
            raise RpcError(
                FAILED, f"{kind.lower()} {name!r} does not exist{place}; see: ambient get {kind.lower()} -A"
            )

    async def get(self, call: Call) -> list[dict[str, Any]]:
        """Objects of one kind as Kubernetes writes them, with what the mesh knows of each."""
        kind = take(call.params, "kind", str)
        namespace, name = take(call.params, "namespace", str, ""), take(call.params, "name", str, "")
        found = self._pods() if kind == "Pod" else self._nodes() if kind == "Node" else self._objects(kind)
        return [each for each in found if _is_meant(each, kind, namespace, name)]

    def _pods(self) -> list[dict[str, Any]]:
        return [pod_view(self._cluster, pod) for pod in self._cluster.pods()]

    def _nodes(self) -> list[dict[str, Any]]:
        nodes = self._cluster.nodes
        return [{"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}} for name in nodes]

    def _objects(self, kind: str) -> list[dict[str, Any]]:
        entries = self._cluster.store.entries
        return [object_view(self._cluster, entries[key]) for key in sorted(entries) if key[0] == kind]

    async def enroll(self, call: Call) -> dict[str, Any]:
        """Switch the mode of namespaces and pods; events tell of each pod."""
        return await self._enroller.enroll(EnrollRequest.read(call.params), call.event)

    async def waypoint_apply(self, call: Call) -> dict[str, Any]:
        """Start a waypoint."""
        return await self._waypoints.apply(WaypointRequest.read(call.params))

    async def waypoint_delete(self, call: Call) -> dict[str, Any]:
        """Take one away."""
        return await self._waypoints.delete(WaypointRequest.read(call.params))

    async def waypoint_list(self, call: Call) -> dict[str, Any]:
        """All of them."""
        return {"items": self._waypoints.list()}

    async def authz_check(self, call: Call) -> dict[str, Any]:
        """What policy decides between two workloads."""
        return check(self._cluster, call.params)

    async def describe(self, call: Call) -> dict[str, Any]:
        """The way to a pod or a service, and why a pod is not enrolled."""
        return describe(self._cluster, call.params)

    async def status(self, call: Call) -> dict[str, Any]:
        """Daemons, namespaces, certificates."""
        return status(self._cluster)

    async def dump(self, call: Call) -> dict[str, Any]:
        """What every daemon is told."""
        return dump(self._cluster)


def check_store(store: Store, capacity: int) -> None:
    """Refuse a store from which pods or policies could not be made, or more pods than fit.

    Raises:
        ConfigError: ``file:line: reason``.
    """
    convert(entry.object for entry in store.entries.values())
    seen: dict[tuple[str, str], str] = {}
    pods = wanted_pods(store)
    if len(pods) > capacity:
        room = f"the mesh has room for {capacity}; start it with more --nodes"
        raise ConfigError(f"{len(pods)} pods do not fit: {room}")
    for pod in pods:
        other = seen.setdefault((pod.namespace, pod.name), pod.owner)
        if other != pod.owner:
            raise ConfigError(f"{pod.owner} and {other} both have a pod {pod.namespace}/{pod.name}")


def _body(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"not an object: {type(value).__name__}")
    return {name: part for name, part in value.items() if name != "origin"}


def _key(value: object) -> Key:
    match value:
        case {"kind": str(kind), "metadata": {"name": str(name), **metadata}}:
            namespace = str(metadata.get("namespace") or "default")
            return kind, "" if kind in CLUSTER_SCOPED else namespace, name
        case _:
            raise ConfigError("an object to delete needs a kind and a name")


def _is_meant(view: Mapping[str, Any], kind: str, namespace: str, name: str) -> bool:
    metadata = view["metadata"]
    if kind not in CLUSTER_SCOPED and namespace and metadata.get("namespace", "default") != namespace:
        return False
    return not name or metadata["name"] == name
