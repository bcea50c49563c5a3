"""The mesh as control holds it, and the one step that makes what runs follow what was asked for.

Floor 3. Everything changes in this thread and between two awaits: whoever changes something calls
``reconcile``, which plans the pods, moves the captures on, publishes the registry and rings the bell. Tasks
that wait for an outcome wait at the bell and look.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, TypeAlias

import trio

from ambient.control.address_book import AddressBook
from ambient.control.bell import Bell
from ambient.control.capture_plan import UNMOVED, Capture, Phase, published, reported, step
from ambient.control.distribution import Distribution, Peer
from ambient.control.issuer import Issuer
from ambient.control.node_pods import NodePods
from ambient.control.pods import Guest, Pod, Role, Status
from ambient.control.pods_plan import Wanted, wanted_pods
from ambient.control.registry_builder import RegistryBuilder
from ambient.control.registry_plan import Registry
from ambient.control.schedule_plan import Placed, choose_node
from ambient.control.store_plan import Store
from ambient.control.survey import Agents
from ambient.control.waypoints_plan import Waypoint
from ambient.errors import ConfigError
from ambient.model.addressing import NETNS, AddressPlan
from ambient.model.authorization import Security
from ambient.model.enrollment import Mode, desired_mode
from ambient.model.identity import SpiffeId
from ambient.pki.authority import Issued
from ambient.wire.values import to_wire
from ambient.wire.xds import NodePod, PodReport

log = logging.getLogger("ambient.control")

# However slow the machine, nobody waits longer for what has been reported; picked, not measured.
LONGEST_REST_SECONDS = 0.05

# Namespace and name of a pod: what stays when it is started anew.
Key: TypeAlias = tuple[str, str]


class Cluster:
    """What was asked for, what runs, and what everybody is told.

    Args:
        clock: Returns unix seconds.
    """

    def __init__(self, issuer: Issuer, clock: Callable[[], float]) -> None:
        self.issuer = issuer
        self.clock = clock
        self.bell = Bell()
        self.distribution = Distribution(self, self.bell)
        self.agents = Agents(self.distribution, clock)
        self.store = Store.fresh(clock())
        self.nodes: tuple[str, ...] = ()
        self.engines: dict[str, str] = {}
        self.pod_labels: dict[tuple[str, str], dict[str, str | None]] = {}
        self.book = AddressBook()
        self._guests: dict[Key, Wanted] = {}
        self._dismissed: set[Key] = set()
        self._pods: dict[str, Pod] = {}
        self._by_key: dict[Key, Pod] = {}
        self._generations: dict[tuple[str, str], int] = {}
        self._programmed: set[tuple[str, str]] = set()
        self._watchers: list[trio.MemorySendChannel[dict[str, Any]]] = []
        self._registry = Registry()
        self._builder = RegistryBuilder(self.book.of_service)
        self._node_pods = NodePods()
        # By uid: the mode that labels asked for, and which labels those were.
        self._desired: dict[str, tuple[Mapping[str, str], Mapping[str, str], Mode]] = {}
        self._due: trio.Event | None = None
        self._news: list[Callable[[], None]] = []
        self._dirty = True
        # What the next ``reconcile`` has to look at. A word on one pod of a thousand is a look at that one.
        self._everything = self._replan = True
        self._touched: set[str] = set()
        # Pods that move on when daemons ack.
        self._awaiting: set[str] = set()
        self._wanted: dict[Key, Wanted] = {}
        self._planned: Store | None = None

    # What is asked ------------------------------------------------------------------------------

    def pods(self) -> tuple[Pod, ...]:
        """Every pod, by namespace and name."""
        return tuple(sorted(self._pods.values(), key=lambda pod: pod.key))

    def pod(self, namespace: str, name: str) -> Pod | None:
        """The pod of this name, or None."""
        return self._by_key.get((namespace, name))

    def desired(self, pod: Pod) -> Mode:
        """The mode that the labels ask for."""
        above = self.store.labels_of_namespace(pod.namespace)
        known = self._desired.get(pod.uid)
        if known is not None and known[0] is above and known[1] is pod.labels:
            return known[2]
        waypoint = pod.role is Role.WAYPOINT
        mode = desired_mode(above, pod.labels, host_network=pod.spec.host_network, is_waypoint=waypoint)
        self._desired[pod.uid] = (above, pod.labels, mode)
        return mode

    def waypoints(self) -> dict[tuple[str, str], Waypoint]:
        """Every waypoint, by namespace and name."""
        return self._builder.waypoints(self.store, self._programmed)

    # What happens -------------------------------------------------------------------------------

    def set_nodes(self, names: tuple[str, ...], plan: AddressPlan = NETNS) -> None:
        """Say which nodes there are; once, before any pod can be placed.

        Raises:
            ConfigError: there are other ones already.
        """
        if self.nodes and self.nodes != names:
            raise ConfigError(f"the nodes are {', '.join(self.nodes)} already")
        if not self.nodes:
            self.nodes = names
            self.book = AddressBook(plan, names)
            self._builder = RegistryBuilder(self.book.of_service)
        self.changed()

    def commit(self, store: Store) -> None:
        """Take *store* as what is asked for."""
        self.store = store
        self.changed()

    def write_pod_labels(self, pods: Mapping[tuple[str, str], Mapping[str, str | None]]) -> None:
        """Write labels on pods; their successors after a restart keep them. ``changed`` makes it count."""
        for key, labels in pods.items():
            self.pod_labels[key] = {**self.pod_labels.get(key, {}), **labels}
            if pod := self.pod(*key):
                pod.labels = self._labels(key, pod.spec.labels)

    def restart(self, pod: Pod) -> None:
        """Have another pod of the same name and addresses take its place."""
        pod.ending = True
        self.changed()

    def set_status(self, uid: str, status: Status) -> None:
        """Take the supervisor's word on a pod; of one that is gone it does not matter."""
        self._news.append(partial(self._take_status, uid, status))
        self.soon()

    def _take_status(self, uid: str, status: Status) -> None:
        pod = self._pods.get(uid)
        if pod is not None and pod.status != status:
            anew = (pod.status.pid, pod.status.netns) != (status.pid, status.netns)
            if pod.capture.phase is Phase.FAILED and anew:
                pod.capture = Capture()  # What stood in the way may have ended with the old process.
            pod.status = status
            self._touched.add(uid)
            self._dirty = self._replan = True

    def welcome(self, wanted: Wanted) -> Pod:
        """Take in the guest that *wanted* describes, as a pod that is not in the mesh yet.

        Asked again for the same one, nothing changes, but that it is not to leave any more.

        Raises:
            ConfigError: its name or one of its addresses is another's, or its namespace or node is not there.
        """
        key, guest = (wanted.namespace, wanted.name), wanted.guest
        assert guest is not None
        known = self._guests.get(key)
        if known is not None and known.guest is not None and known.guest.status.netns == guest.status.netns:
            self._dismissed.discard(key)
            return self._by_key[key]
        self._require_welcome(wanted, guest)
        self._guests[key] = wanted
        self._dismissed.discard(key)
        self.changed()
        return self._by_key[key]

    def imagine(self, wanted: Wanted) -> Pod:
        """The pod that ``welcome`` would make of a guest, which nobody else learns of.

        Raises:
            ConfigError: it would not be welcome.
        """
        assert wanted.guest is not None
        self._require_welcome(wanted, wanted.guest)
        return self._made_of(wanted, "", wanted.guest.node, wanted.guest.addresses)

    def _require_welcome(self, wanted: Wanted, guest: Guest) -> None:
        key = (wanted.namespace, wanted.name)
        if self.store.get("Namespace", "", wanted.namespace) is None:
            raise ConfigError(f"namespace {wanted.namespace!r} does not exist; see: ambient get namespaces")
        if guest.node not in self.nodes:
            raise ConfigError(f"no node {guest.node!r}: the nodes are {', '.join(self.nodes)}")
        if self.pod(*key) is not None or key in self._wanted:
            raise ConfigError(f"there is a pod {wanted.namespace}/{wanted.name} already; give another --name")
        for pod in self._pods.values():
            if taken := set(pod.addresses) & set(guest.addresses):
                raise ConfigError(f"{min(taken)} is the address of pod {pod.namespace}/{pod.name} already")

    def dismiss(self, key: Key, *, vanished: bool) -> None:
        """Forget a guest: at once if it has *vanished*, else when it has left the mesh.

        Raises:
            ConfigError: there is no such guest.
        """
        if key not in self._guests:
            raise ConfigError(f"{key[0]}/{key[1]} is no guest of this mesh")
        if vanished:
            del self._guests[key]
        else:
            self._dismissed.add(key)
        self.changed()

    def changed(self) -> None:
        """Something that the registry depends on changed, of which many pods may be made."""
        self._everything = True
        self.touched(())

    def touched(self, uids: Iterable[str]) -> None:
        """These pods changed, and nothing else."""
        named = set(uids)
        self._touched |= named
        self._dirty = True
        # Which pods there are to be does not follow from labels: only the end of one makes room for another.
        self._replan |= self._everything or any(pod.ending for pod in self._among(named))
        self.reconcile()

    async def run(self) -> None:
        """Do what ``soon`` asks for until cancelled: reconcile, then rest as long as that took.

        A thousand pods report one by one; reconciling for each costs a thousand times a thousand. What comes
        meanwhile is done together, and the daemons that are to answer get at least half of the CPU.
        """
        self._due = trio.Event()
        try:
            while True:
                await self._due.wait()
                self._due = trio.Event()
                started = time.perf_counter()
                self.reconcile()
                await trio.sleep(min(time.perf_counter() - started, LONGEST_REST_SECONDS))
        finally:
            self._due = None

    def soon(self) -> None:
        """Have ``run`` reconcile; where nobody runs it, do so now."""
        if self._due is None:
            self.reconcile()
        else:
            self._due.set()

    def reconcile(self) -> None:
        """Make everything follow, until nothing moves any more."""
        news, self._news = self._news, []
        for each in news:
            each()
        if self._dirty or self._awaiting:
            while any((self._plan_pods(), self._step_captures(), self._publish())):
                pass
            self._settle()
            self.distribution.wake()
        self.bell.ring()

    def _settle(self) -> None:
        """What was looked at needs no second look."""
        looked_at = tuple(self._looked_at())
        gone = self._touched - self._pods.keys()
        self._awaiting -= gone
        for pod in looked_at:
            (self._awaiting.add if _awaits_acks(pod) else self._awaiting.discard)(pod.uid)
        self._node_pods.look_at((*gone, *(pod.uid for pod in looked_at)), self._pods)
        self._everything = self._replan = False
        self._touched.clear()

    def _looked_at(self) -> Iterable[Pod]:
        """The pods that may have to move."""
        if self._everything:
            return tuple(self._pods.values())
        return self._among(self._touched | self._awaiting)

    def _among(self, uids: Iterable[str]) -> tuple[Pod, ...]:
        return tuple(self._pods[uid] for uid in uids if uid in self._pods)

    # The owner of the links ---------------------------------------------------------------------

    def registry(self) -> Registry:
        """What is true now."""
        return self._registry

    def node_pods(self, node: str) -> tuple[NodePod, ...]:
        """The pods whose capture is the business of that node's agent."""
        return self._node_pods.of(node)

    def certify(self, peer: Peer, identity: SpiffeId, csr: bytes) -> Issued:
        """Sign, or say why not."""
        return self.issuer.certify(peer, self._pods.values(), identity, csr)

    def pod_reported(self, peer: Peer, report: PodReport) -> None:
        """Take an agent's word on a pod of its node, with the next ``reconcile``.

        Not before: who sees that a pod is enrolled must find the registry that says so.
        """
        self._news.append(partial(self._take_report, peer, report))

    def _take_report(self, peer: Peer, report: PodReport) -> None:
        pod = self._pods.get(report.pod)
        if pod is None or peer.role != "agent" or pod.node != peer.node:
            log.debug("%s reported %s of %s, which is not there", peer, report.state, report.pod)
            return
        before, pod.capture = pod.capture, reported(pod.capture, report)
        if pod.capture.phase is Phase.FAILED and before.phase is not Phase.FAILED:
            log.warning("%s could not be captured: %s", pod.uid, report.reason)
        self._touched.add(pod.uid)
        self._dirty = True

    def frame_received(self, peer: Peer, frame: Mapping[str, Any]) -> None:
        """Take what agents say beyond the wire that all daemons speak."""
        self.agents.received(peer, frame)

    def link_changed(self) -> None:
        """Something was acked or reported, or a link came or went."""
        self.soon()

    # Watching pods ------------------------------------------------------------------------------

    def watch(self) -> trio.MemoryReceiveChannel[dict[str, Any]]:
        """Events ``{type, pod}`` for every pod that is there, and then for those that come and go."""
        # Unbounded: the only reader is the supervisor that started us, and pods are few.
        send, receive = trio.open_memory_channel[dict[str, Any]](math.inf)
        for pod in self.pods():
            if not pod.guest:
                send.send_nowait({"type": "add", "pod": pod_event(pod)})
        self._watchers.append(send)
        return receive

    def _tell(self, kind: str, pod: Pod) -> None:
        if pod.guest:
            return  # Nobody here runs it.
        for watcher in list(self._watchers):
            try:
                watcher.send_nowait({"type": kind, "pod": pod_event(pod)})
            except trio.BrokenResourceError:
                self._watchers.remove(watcher)

    # One step -----------------------------------------------------------------------------------

    def _plan_pods(self) -> bool:
        # Of a guest that was dismissed, and of what ends, others' words decide.
        if not self.nodes or not (self._replan or self._dismissed or self._awaiting):
            return False
        if self._planned is not self.store:
            found = {(each.namespace, each.name): each for each in wanted_pods(self.store)}
            self._planned, self._wanted = self.store, found
        self._forget_dismissed()
        wanted = self._guests | self._wanted if self._guests else self._wanted
        moved = [self._remove_ended(pod, wanted) for pod in list(self._pods.values()) if pod.ending]
        moved += [self._end(pod) for pod in self._outdated(wanted)]
        moved += [self._add(each) for key, each in wanted.items() if key not in self._by_key]
        return any(moved)

    def _forget_dismissed(self) -> None:
        """Let dismissed guests go whose last proxied connection has ended."""
        for key in tuple(self._dismissed):
            pod = self._by_key.get(key)
            if pod is None or (pod.capture.phase in (Phase.OUT, Phase.FAILED) and not pod.capture.draining):
                self._dismissed.discard(key)
                self._guests.pop(key, None)

    def _outdated(self, wanted: Mapping[Key, Wanted]) -> Iterator[Pod]:
        """Pods that nobody wants, or wants otherwise; never so many that an owner has too few ready ones."""
        asked = ((pod, wanted.get(pod.key)) for pod in self._pods.values() if not pod.ending)
        outdated = [(pod, now) for pod, now in asked if now is None or _is_otherwise(pod, now)]
        if not outdated:
            return
        spare = self._spare(wanted)
        for pod, now in outdated:
            owner = (pod.namespace, pod.owner)
            if now is not None:
                yield pod
            elif not pod.ready or spare[owner] > 0:
                spare[owner] -= pod.ready
                yield pod

    def _spare(self, wanted: Mapping[Key, Wanted]) -> Counter[tuple[str, str]]:
        """By owner: how many more pods are ready than are asked for."""
        spare = Counter((pod.namespace, pod.owner) for pod in self._pods.values() if pod.ready)
        spare.subtract(Counter((each.namespace, each.owner) for each in wanted.values()))
        return spare

    def _end(self, pod: Pod) -> bool:
        pod.ending = self._dirty = True
        self._touched.add(pod.uid)
        return True

    def _remove_ended(self, pod: Pod, wanted: Mapping[Key, Wanted]) -> bool:
        if not pod.leaving_version or not self.distribution.all_applied(pod.leaving_version):
            return False
        del self._pods[pod.uid], self._by_key[pod.key]
        self._desired.pop(pod.uid, None)
        self._touched.add(pod.uid)
        self._dirty = self._replan = True
        self._tell("remove", pod)
        if pod.key in wanted:
            self._add(wanted[pod.key], before=pod)
        else:
            self.book.free_pod(pod.addresses)
            self.pod_labels.pop(pod.key, None)
        return True

    def _add(self, wanted: Wanted, before: Pod | None = None) -> bool:
        key = (wanted.namespace, wanted.name)
        if before is None and not self._fits(wanted):
            return False
        generation = self._generations[key] = self._generations.get(key, 0) + 1
        node = before.node if before else self._place(wanted)
        addresses = self._addresses(wanted, node, before)
        uid = f"Kubernetes//Pod/{wanted.namespace}/{wanted.name}#{generation}"
        pod = self._made_of(wanted, uid, node, addresses)
        pod.mode = Mode.SIDECAR if self.desired(pod) is Mode.SIDECAR and not pod.guest else Mode.NONE
        self._pods[pod.uid] = self._by_key[key] = pod
        self._touched.add(pod.uid)
        self._dirty = True
        self._tell("add", pod)
        return True

    def _made_of(self, wanted: Wanted, uid: str, node: str, addresses: tuple[str, ...]) -> Pod:
        pod = Pod(
            uid=uid,
            namespace=wanted.namespace,
            name=wanted.name,
            owner=wanted.owner,
            node=node,
            addresses=addresses,
            spec=wanted.spec,
            role=wanted.role,
            engine=wanted.engine or self.engines.get(wanted.namespace, "ambient"),
            labels=self._labels((wanted.namespace, wanted.name), wanted.spec.labels),
        )
        if wanted.guest is not None:
            pod.guest, pod.status = True, wanted.guest.status
        return pod

    def _fits(self, wanted: Wanted) -> bool:
        """Whether there is room now; ``apply`` sees to it that there will be once old pods have ended."""
        if wanted.spec.host_network or wanted.guest is not None:
            return True
        return any(map(self.book.has_room, self.nodes))

    def _place(self, wanted: Wanted) -> str:
        if wanted.guest is not None:
            return wanted.guest.node
        placed = [Placed(pod.node, f"{pod.namespace}/{pod.owner}") for pod in self._pods.values()]
        owner = f"{wanted.namespace}/{wanted.owner}"
        nodes = [name for name in self.nodes if wanted.spec.host_network or self.book.has_room(name)]
        return choose_node(nodes, placed, owner=owner, preferred=wanted.spec.nodes)

    def _addresses(self, wanted: Wanted, node: str, before: Pod | None) -> tuple[str, ...]:
        if wanted.guest is not None:
            return wanted.guest.addresses
        if before is not None and before.spec.host_network == wanted.spec.host_network:
            return before.addresses
        if before is not None:
            self.book.free_pod(before.addresses)
        return self.book.of_node(node) if wanted.spec.host_network else self.book.new_pod(node)

    def _labels(self, key: tuple[str, str], own: Mapping[str, str]) -> dict[str, str]:
        merged = {**own, **self.pod_labels.get(key, {})}
        return {name: value for name, value in merged.items() if value is not None}

    def _step_captures(self) -> bool:
        moved = False
        for pod in self._looked_at():
            if pod.ending:
                continue  # It is captured until it is gone: its last connections are still carried.
            wanted = pod.mode is Mode.NONE and self.desired(pod) is Mode.AMBIENT
            if (pod.capture.phase, wanted) in UNMOVED:
                continue
            applied = self.distribution.all_applied
            after = step(pod.capture, wanted=wanted, runnable=pod.runnable, applied=applied)
            if after != pod.capture:
                pod.capture = after
                self._touched.add(pod.uid)
                moved = self._dirty = True
        return moved

    def _publish(self) -> bool:
        if self._replan:
            self._note_programmed()
        if not self._dirty:
            return False
        self._dirty = False
        touched = None if self._everything else self._touched
        self._registry = self._builder.build(
            self._registry, self.store, self._programmed, self._pods, touched
        )
        leaving = [pod for pod in self._looked_at() if _awaits_acks(pod)]
        for pod in leaving:
            pod.capture = published(pod.capture, self._registry.version)
            if pod.ending and not pod.leaving_version:
                pod.leaving_version = self._registry.version
        return bool(leaving)

    def _note_programmed(self) -> None:
        ready = {
            (pod.namespace, pod.owner.partition("/")[2])
            for pod in self._pods.values()
            if pod.role is Role.WAYPOINT and pod.ready
        }
        there = {(each.namespace, each.name) for each in self.store.of_kind("Gateway")}
        after = (self._programmed | ready) & there
        if after != self._programmed:
            self._programmed, self._dirty = after, True

    def security(self) -> Security:
        """What the security objects mean."""
        return self._builder.security(self.store)


def _awaits_acks(pod: Pod) -> bool:
    """Whether it moves on when every daemon has applied what was published."""
    return pod.ending or pod.capture.phase is Phase.LEAVING


def _is_otherwise(pod: Pod, wanted: Wanted) -> bool:
    """Whether *pod* is to be made anew."""
    if pod.spec is wanted.spec:
        return False
    if pod.spec != wanted.spec:
        return True
    pod.spec = wanted.spec  # The same in other words: seen at a glance the next time.
    return False


def pod_event(pod: Pod) -> dict[str, Any]:
    """A pod as the supervisor is told of it."""
    return {
        "uid": pod.uid,
        "namespace": pod.namespace,
        "name": pod.name,
        "node": pod.node,
        "addresses": list(pod.addresses),
        "mode": pod.mode.value,
        "engine": pod.engine,
        "role": pod.role.value,
        "service_account": pod.spec.service_account,
        "spec": to_wire(pod.spec),
    }
