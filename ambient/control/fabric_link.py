"""What the supervisor may ask of control: attach a daemon, name the nodes, watch the pods, report on one.

Floor 3. Calls of the admin wire over the one connection that control inherited.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping
from typing import Any

import trio

from ambient.control.cluster import Cluster
from ambient.control.distribution import Peer
from ambient.control.enrollment import guest_forecast
from ambient.control.params import take, take_one_of
from ambient.control.pods import Guest, Status
from ambient.control.pods_plan import Wanted
from ambient.engine.rpc import Call, Method
from ambient.errors import ConfigError
from ambient.model.addressing import LOOPBACK, NETNS
from ambient.model.enrollment import DATAPLANE_MODE
from ambient.model.podspec import Container, PodSpec

log = logging.getLogger("ambient.control.fabric")

ROLES = ("agent", "ztunnel", "waypoint", "sidecar")


class FabricLink:
    """Serves the supervisor.

    Args:
        nursery: Where the links to the daemons live.
    """

    def __init__(self, cluster: Cluster, nursery: trio.Nursery) -> None:
        self._cluster = cluster
        self._nursery = nursery

    def methods(self) -> Mapping[str, Method]:
        """By name, for ``serve_admin``."""
        return {
            "attach": self.attach,
            "nodes": self.nodes,
            "watch_pods": self.watch_pods,
            "pod_status": self.pod_status,
            "welcome": self.welcome,
            "foresee": self.foresee,
            "dismiss": self.dismiss,
        }

    async def attach(self, call: Call) -> dict[str, Any]:
        """A daemon's control end, as the one descriptor beside the call."""
        sock = _socket(call)
        try:
            role = take_one_of(call.params, "role", ROLES)
            peer = Peer(role, take(call.params, "node", str, ""), take(call.params, "pod", str, ""))
        except ConfigError:
            sock.close()
            raise
        log.info("attached: %s", peer)
        self._nursery.start_soon(self._cluster.distribution.serve, peer, sock)
        return {}

    async def nodes(self, call: Call) -> dict[str, Any]:
        """The nodes there are; the loopback fabric has addresses of its own."""
        names = tuple(take(call.params, "names", list))
        fabric = take_one_of(call.params, "fabric", ("netns", "loopback"), "netns")
        self._cluster.set_nodes(names, LOOPBACK if fabric == "loopback" else NETNS)
        return {}

    async def watch_pods(self, call: Call) -> dict[str, Any]:
        """Events for as long as the supervisor listens."""
        with self._cluster.watch() as events:
            async for event in events:
                await call.event(event)
        return {}

    async def pod_status(self, call: Call) -> dict[str, Any]:
        """Where a pod stands."""
        self._cluster.set_status(take(call.params, "uid", str), status_of(call.params))
        return {}

    async def welcome(self, call: Call) -> dict[str, Any]:
        """A namespace that somebody else made is to count as a pod; answers its uid."""
        return {"uid": self._cluster.welcome(guest_of(call.params)).uid}

    async def foresee(self, call: Call) -> dict[str, Any]:
        """How enrolling such a namespace would go, which was surveyed; nothing is changed."""
        pod = self._cluster.imagine(guest_of(call.params))
        surveyed = take(call.params, "survey", dict)
        existing = take_one_of(call.params, "existing", ("keep", "reset"), "keep")
        return guest_forecast(self._cluster, pod, surveyed, existing)

    async def dismiss(self, call: Call) -> dict[str, Any]:
        """That one has gone, or is to be forgotten when it has left the mesh; answers what it was."""
        key = (take(call.params, "namespace", str), take(call.params, "name", str))
        pod = self._cluster.pod(*key)
        self._cluster.dismiss(key, vanished=take(call.params, "vanished", bool))
        if pod is None:
            return {}
        mode = pod.labels.get(DATAPLANE_MODE, "")
        return {"node": pod.node, "service_account": pod.spec.service_account, "dataplane_mode": mode}


def guest_of(params: Mapping[str, Any]) -> Wanted:
    """Read the description of a guest.

    Raises:
        ConfigError: a field is missing or of the wrong type.
    """
    name = take(params, "name", str)
    mode = take(params, "dataplane_mode", str, "")
    spec = PodSpec(
        containers=(Container(name=take(params, "container", str, name)),),
        service_account=take(params, "service_account", str),
        labels={"app": name} | ({DATAPLANE_MODE: mode} if mode else {}),
    )
    addresses = tuple(map(str, take(params, "addresses", list)))
    return Wanted(
        namespace=take(params, "namespace", str),
        name=name,
        owner=f"Pod/{name}",
        spec=spec,
        guest=Guest(node=take(params, "node", str), addresses=addresses, status=status_of(params)),
    )


def status_of(params: Mapping[str, Any]) -> Status:
    """Read a report on a pod.

    Raises:
        ConfigError: a field is of the wrong type.
    """
    return Status(
        phase=take(params, "phase", str),
        ready=take(params, "ready", bool, False),
        pid=take(params, "pid", int, 0),
        netns=take(params, "netns", str, ""),
        started=take(params, "started", float, 0.0),
        restarts=take(params, "restarts", int, 0),
        reason=take(params, "reason", str, ""),
        containers=tuple(take(params, "containers", list, [])),
    )


def _socket(call: Call) -> socket.socket:
    if len(call.fds) != 1:
        raise ConfigError(f"attach needs one descriptor, got {len(call.fds)}")
    return socket.socket(fileno=call.fds[0])
