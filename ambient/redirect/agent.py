"""The node agent: enrolls and releases the pods of one node, translates virtual addresses, answers DNS.

It carries no bytes of any connection: when it is away nothing new is enrolled, and nothing else changes
(but names, which pods then ask for again).
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from ambient.engine.follow import Follow
from ambient.errors import ConfigError
from ambient.model.addressing import NETNS
from ambient.redirect import backend
from ambient.redirect.backends import Backend, choose
from ambient.redirect.cni_server import CniServer
from ambient.redirect.dns_server import DnsServer
from ambient.redirect.pod_keeper import Around, PodKeeper
from ambient.redirect.vips import VirtualAddresses
from ambient.redirect.zds_server import Named, ZdsServer
from ambient.wire.xds import NodePod, PodReport

log = logging.getLogger("agent")

# A name server's socket that cannot be had is tried again: its address may not be there yet. Picked.
DNS_RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How this agent was asked to run.

    Attributes:
        node: Name of its node.
        zds_path: Where ztunnel finds it.
        cni_path: Where ambient-cni finds it; "" for nowhere.
        rules: How rules are put into pods.
        dns_addresses: What the name server listens on; none switches it off.
        dns_upstreams: Name servers for names outside the cluster.
        services: Whether virtual addresses are translated here (``loopback`` has nothing to translate).
    """

    node: str
    zds_path: str
    cni_path: str = ""
    rules: Backend = backend
    dns_addresses: tuple[str, ...] = NETNS.dns
    dns_upstreams: tuple[str, ...] = ()
    services: bool = True


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the environment.

    Raises:
        ConfigError: a name is missing, or a value is none of those there are.
    """
    for name in ("NODE_NAME", "INPOD_UDS"):
        if not environment.get(name):
            raise ConfigError(f"{name} is not set")
    return Settings(
        node=environment["NODE_NAME"],
        zds_path=environment["INPOD_UDS"],
        cni_path=environment.get("AMBIENT_CNI_SOCKET", ""),
        rules=choose(environment.get("AMBIENT_REDIRECT", "")),
        dns_upstreams=tuple(environment.get("AMBIENT_DNS_UPSTREAMS", "").split()),
    )


class Agent:
    """Everything of one node agent, put together.

    Args:
        control: The connection to control, already there.
    """

    def __init__(self, settings: Settings, control: socket.socket) -> None:
        self._settings = settings
        self._follow = Follow(control)
        self._zds = ZdsServer(settings.zds_path, self._snapshot)
        self._vips = VirtualAddresses(self._follow.mesh, settings.node)
        self._dns = DnsServer(lambda: self._follow.mesh, settings.dns_upstreams)
        self._pods: dict[str, PodKeeper] = {}
        self._cni = CniServer(settings.cni_path, self._keeper, self._zds)
        self._known = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._follow.on_update = self._vips.mesh_changed
        self._follow.on_pods = self._pods_named
        self._zds.on_drained = self._drained
        self._zds.on_refused = self._refused

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; the pods stay as they are.

        Raises:
            Unavailable: control has gone.
            OSError: a socket cannot be had.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._zds.run)
                nursery.start_soon(self._follow.run)
                await self._follow.synchronised()
                if self._settings.cni_path:
                    nursery.start_soon(self._cni.run)
                if self._settings.services:
                    nursery.start_soon(self._vips.run)
                nursery.start_soon(self._serve_names)
                async for _ in signals:
                    nursery.cancel_scope.cancel()

    async def _serve_names(self) -> None:
        while self._settings.dns_addresses:
            try:
                await self._dns.serve(self._settings.dns_addresses)
            except* OSError as group:
                log.error("no name server: %s", group.exceptions[0])
            await trio.sleep(DNS_RETRY_SECONDS)

    def _pods_named(self, pods: tuple[NodePod, ...]) -> None:
        """Control's full list of this node's pods."""
        assert self._nursery is not None
        named = {pod.uid: pod for pod in pods}
        for uid in self._pods.keys() - named.keys():
            self._pods.pop(uid).gone()
        for uid, pod in named.items():
            if uid in self._pods:
                self._pods[uid].want(pod)
                continue
            keeper = self._pods[uid] = PodKeeper(pod, Around(self._zds, self._reported, self._settings.rules))
            keeper.recall()
            self._nursery.start_soon(keeper.run)
        self._known.set()
        self._cni.changed()

    def _reported(self, report: PodReport) -> None:
        self._follow.report(report)
        self._cni.changed()

    def _keeper(self, namespace: str, name: str) -> PodKeeper | None:
        """The newest pod of that name."""
        found = [
            each for each in self._pods.values() if (each.pod.namespace, each.pod.name) == (namespace, name)
        ]
        return found[-1] if found else None

    async def _snapshot(self) -> list[Named]:
        await self._known.wait()
        return [named for keeper in self._pods.values() if (named := keeper.named()) is not None]

    def _drained(self, uid: str) -> None:
        if uid in self._pods:
            self._pods[uid].drained()

    def _refused(self, uid: str, reason: str) -> None:
        if uid in self._pods:
            self._pods[uid].refused(reason)
