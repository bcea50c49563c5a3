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
from dataclasses import dataclass, replace

import trio

from ambient.engine import pages
from ambient.engine.follow import Follow
from ambient.engine.netns import listen_in
from ambient.errors import ConfigError, Unavailable
from ambient.model.addressing import NETNS
from ambient.model.explain import refuses_strangers
from ambient.redirect import backend
from ambient.redirect.attestation import Attestor
from ambient.redirect.backends import BACKEND_NAME, Backend, attestable, choose
from ambient.redirect.cni_server import CniServer
from ambient.redirect.dns_server import DnsServer
from ambient.redirect.metrics import METRICS_PORT, METRICS_TYPE, exposition
from ambient.redirect.pod_keeper import Around, PodKeeper
from ambient.redirect.survey import survey
from ambient.redirect.vips import VirtualAddresses
from ambient.redirect.zds_server import Named, ZdsServer
from ambient.wire.frames import Frame
from ambient.wire.xds import NodePod, PodReport

log = logging.getLogger("agent")

# A name server's socket that cannot be had is tried again: its address may not be there yet. Picked.
DNS_RETRY_SECONDS = 1.0
# Read of control's word at a time, some 5 ms: nobody's bytes wait here, but lookups do. Picked.
SLICE_BYTES = 32 * 1024
# Control takes three times as long without a word for silence.
ROUNDS_BETWEEN_WORDS = 5


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
        metrics_port: Where its own numbers are served on the node; 0: nowhere.
        dns_capture: Whether pods' lookups may be sent to their proxy; false overrules every pod.
        services: Whether virtual addresses are translated here (``loopback`` has nothing to translate).
    """

    node: str
    zds_path: str
    cni_path: str = ""
    rules: Backend = backend
    dns_addresses: tuple[str, ...] = NETNS.dns
    dns_upstreams: tuple[str, ...] = ()
    dns_capture: bool = True
    services: bool = True
    metrics_port: int = METRICS_PORT


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
        rules=choose(environment.get(BACKEND_NAME, "")),
        dns_upstreams=tuple(environment.get("AMBIENT_DNS_UPSTREAMS", "").split()),
        # The name and the meaning that ztunnel gives it: the two must agree.
        dns_capture=environment.get("ISTIO_META_DNS_CAPTURE", "true").lower() == "true",
    )


class Agent:
    """Everything of one node agent, put together.

    Args:
        control: The connection to control, already there.
    """

    def __init__(self, settings: Settings, control: socket.socket) -> None:
        self._settings = settings
        self._follow = Follow(control, slice_bytes=SLICE_BYTES)
        self._zds = ZdsServer(settings.zds_path, self._snapshot)
        self._vips = VirtualAddresses(self._follow.mesh, settings.node)
        self._dns = DnsServer(lambda: self._follow.mesh, settings.dns_upstreams)
        self._pods: dict[str, PodKeeper] = {}
        self._named: dict[str, NodePod] = {}
        self._cni = CniServer(settings.cni_path, self._keeper, self._zds, settings.rules)
        self._attestor = Attestor(self._pods, self._zds, attestable(settings.rules))
        self._around = Around(self._zds, self._reported, settings.rules, self._is_strict)
        self._known = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._follow.on_update = self._vips.mesh_changed
        self._follow.on_pods = self._pods_named
        self._zds.on_drained = self._drained
        self._zds.on_refused = self._refused
        self._follow.on_frame["survey"] = self._survey
        self._attestor.on_round = self._attested
        self._rounds = 0
        self._surveys = trio.CapacityLimiter(1)

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT; the pods stay as they are.

        Raises:
            Unavailable: control has gone before it had said anything.
            OSError: a socket cannot be had.
        """
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._zds.run)
                nursery.start_soon(self._follow_control)
                await self._follow.synchronised()
                nursery.start_soon(self._attestor.run)
                nursery.start_soon(self._serve_metrics)
                if self._settings.cni_path:
                    nursery.start_soon(self._cni.run)
                if self._settings.services:
                    nursery.start_soon(self._vips.run)
                nursery.start_soon(self._serve_names)
                async for _ in signals:
                    nursery.cancel_scope.cancel()

    async def _follow_control(self) -> None:
        try:
            await self._follow.run()
        except* Unavailable as group:
            if not self._follow.knows:
                raise Unavailable("control went away before it had said anything") from group
            # Pods stay enrolled, and what ztunnel's life depends on stays held, until ``ambient down``.
            log.error("control has gone: no pod can be enrolled or released any more")

    async def _serve_names(self) -> None:
        while self._settings.dns_addresses:
            try:
                await self._dns.serve(self._settings.dns_addresses)
            except* OSError as group:
                log.error("no name server: %s", group.exceptions[0])
            await trio.sleep(DNS_RETRY_SECONDS)

    async def _serve_metrics(self) -> None:
        if not self._settings.metrics_port:
            return
        try:
            listener = listen_in(None, self._settings.metrics_port)
        except OSError as exc:
            log.error("no metrics on port %d: %s", self._settings.metrics_port, exc.strerror)
            return
        await pages.serve(listener, {"/metrics": {"GET": self._metrics}})

    def _metrics(self, _query: pages.Query) -> pages.Answer:
        return pages.Answer(200, exposition(self._attestor.statistics()), METRICS_TYPE)

    def _pods_named(self, pods: tuple[NodePod, ...]) -> None:
        """Control's full list of this node's pods."""
        assert self._nursery is not None
        before, self._named = self._named, {pod.uid: pod for pod in pods}
        for uid in self._pods.keys() - self._named.keys():
            self._pods.pop(uid).gone()
        for uid, told in self._named.items():
            if before.get(uid) is told:
                continue  # Of hundreds one has changed.
            pod = told if self._settings.dns_capture else replace(told, dns_capture=False)
            if uid in self._pods:
                self._pods[uid].want(pod)
                continue
            keeper = self._pods[uid] = PodKeeper(pod, self._around)
            keeper.recall()
            self._nursery.start_soon(keeper.run)
        self._known.set()
        self._cni.changed()

    def _reported(self, report: PodReport) -> None:
        self._follow.report(report)
        self._cni.changed()

    def _keeper(self, namespace: str, name: str) -> PodKeeper | None:
        """The newest pod of that name."""
        who = (namespace, name)
        found = [each for each in self._pods.values() if (each.pod.namespace, each.pod.name) == who]
        return found[-1] if found else None

    def _is_strict(self, uid: str) -> bool:
        workload = self._follow.mesh.workload(uid)
        return workload is None or refuses_strangers(self._follow.mesh, workload)

    def _survey(self, frame: Frame) -> None:
        """Control asks how enrolling a pod would go."""
        match frame:
            case {"id": int(number), "uid": str(uid)} if uid in self._pods:
                assert self._nursery is not None
                self._nursery.start_soon(self._answer_survey, number, self._pods[uid].pod)

    async def _answer_survey(self, number: int, pod: NodePod) -> None:
        # Listing connections takes the kernel 10 ms and more: others go on meanwhile.
        found = await trio.to_thread.run_sync(
            survey, pod, self._zds.pids(), self._settings.rules, limiter=self._surveys
        )
        self._follow.send({"kind": "surveyed", "id": number, **found})

    def _attested(self) -> None:
        """After each round; every few of them control hears that they go on."""
        self._rounds += 1
        if self._rounds % ROUNDS_BETWEEN_WORDS != 1:
            return
        now = self._attestor.statistics()
        self._follow.send(
            {
                "kind": "attestation",
                "enrolled": now.enrolled,
                "lost": now.lost,
                "checks": now.checks,
                "repairs": sum(now.repairs.values()),
                "plaintext": dict(now.plaintext),
            }
        )

    async def _snapshot(self) -> list[Named]:
        await self._known.wait()
        return [named for keeper in self._pods.values() if (named := keeper.named()) is not None]

    def _drained(self, uid: str) -> None:
        if uid in self._pods:
            self._pods[uid].drained()

    def _refused(self, uid: str, reason: str) -> None:
        if uid in self._pods:
            self._pods[uid].refused(reason)
