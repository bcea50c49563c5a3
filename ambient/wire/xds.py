"""The distribution wire: control tells every daemon what the mesh is, and signs its certificates.

Floor 1: sans-IO, both ends. Frames of ``ambient.wire.frames`` over a stream socket that the supervisor
made and handed out, so that control knows who is at the other end without asking.

Theory of operation
===================

    daemon (agent, ztunnel, waypoint, sidecar)          control
      |  hello {version}                                   |
      |---------------------------------------------------->|
      |   update {nonce, snapshot: true, more} (slices)     |
      |<----------------------------------------------------|
      |  ack {nonce, error}        once per nonce            |
      |---------------------------------------------------->|
      |   update {nonce, snapshot: false, ...}  | pods {...}  |   for as long as it lasts
      |<----------------------------------------------------|
      |  csr {id, identity, csr}  ->  certificate {id, ...}  |
      |  report {...}                                         |

The slices of one update share its nonce; ``DaemonEnd`` puts them together and says ``Updated`` once,
so that nobody ever acts on half a snapshot. An update is acked after it was *applied*: control counts
on it for the order of enrollment. ``pods`` is the agent's: the full list of its node, of which only what
differs from the last one travels; a node of 250 pods changes pod by pod.

Kinds that this module does not know are handed up as ``Extra`` at both ends, so that a daemon may
speak of its own things over the one connection that it has.

Source: the shape is Istio's delta xDS (nonces, acks with error text, removed names); the encoding is ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ambient.errors import LocalProtocolError, ProtocolError, RemoteProtocolError
from ambient.model.exclusions import NO_EXCLUSIONS, Exclusions
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Change
from ambient.model.policy import Policy
from ambient.model.service import Service
from ambient.model.workload import Workload
from ambient.wire.frames import Frame, FrameReader, encode
from ambient.wire.values import from_wire, to_wire

# 2: ``pods`` says what differs.
VERSION = 2

# Decoding a slice is one pause for the traffic on its thread: five resources take some 0.2 ms.
SLICE_RESOURCES = 5

# A pod of a node is named by some 250 bytes; picked so that a slice is one read of an agent.
SLICE_PODS = 25
# What an agent will hold of pods: ten times what a node has addresses for.
MAX_NODE_PODS = 2_500

# What a daemon will hold of one update that is not complete yet: ten times the largest mesh foreseen.
MAX_UPDATE_RESOURCES = 1_000_000

# A chain is a leaf and perhaps an intermediate, a CSR one key: both far below; picked, not measured.
MAX_DER_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePod:
    """One pod of a node, as its agent has to treat it.

    Attributes:
        netns: A path to its network namespace, for example ``"/proc/4711/ns/net"``.
        mode: ``"ambient"`` (capture it) or ``"none"``.
        existing: ``"keep"`` or ``"reset"``: what happens to connections older than the capture.
        exclusions: What of its traffic is left alone.
    """

    uid: str
    namespace: str
    name: str
    service_account: str
    addresses: tuple[str, ...]
    netns: str
    mode: str = "none"
    existing: str = "keep"
    dns_capture: bool = False
    exclusions: Exclusions = NO_EXCLUSIONS


# A report is one frame of at most 64 KiB; picked, not measured.
MAX_EXISTING_SHOWN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PodReport:
    """What an agent says of one pod.

    Attributes:
        state: ``"enrolled"``, ``"lost"`` (was, and its agent tries to have it so again), ``"draining"``,
            ``"none"`` or ``"failed"``.
        established_kept: Connections older than the capture that live on; -1 if nobody counted.
        established_reset: Those that were reset.
        existing: Both, as ``"10.244.1.2:80 - 10.244.1.3:40112"``; no more than ``MAX_EXISTING_SHOWN``.
        repairs: How often what stood in its namespace had to be put right since it was enrolled.
    """

    pod: str
    state: str
    reason: str = ""
    established_kept: int = -1
    established_reset: int = 0
    existing: tuple[str, ...] = ()
    repairs: int = 0
    duration_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Updated:
    """Apply *change* to the mesh, then ``ack``."""

    nonce: int
    change: Change


@dataclass(frozen=True, slots=True)
class PodsNamed:
    """The agent's node has exactly these pods; ``ack`` when the list is taken."""

    nonce: int
    pods: tuple[NodePod, ...]


@dataclass(frozen=True, slots=True)
class Certified:
    """The answer to ``csr`` *id*: DER, leaf first, and the roots to trust."""

    id: int
    chain: tuple[bytes, ...]
    roots: tuple[bytes, ...]
    not_after: float


@dataclass(frozen=True, slots=True)
class CertificateRefused:
    """The answer to ``csr`` *id*: no, because."""

    id: int
    error: str


@dataclass(frozen=True, slots=True)
class Greeted:
    """The daemon is there; send it the snapshot."""

    version: int


@dataclass(frozen=True, slots=True)
class Acked:
    """The daemon applied (or, with *error*, could not apply) what *nonce* named."""

    nonce: int
    error: str


@dataclass(frozen=True, slots=True)
class CertificateAsked:
    """The daemon wants a certificate for *identity*; answer with ``certificate`` or ``refuse``."""

    id: int
    identity: SpiffeId
    csr: bytes


@dataclass(frozen=True, slots=True)
class PodReported:
    """The agent says where a pod stands."""

    report: PodReport


@dataclass(frozen=True, slots=True)
class Extra:
    """A frame of a kind that is between the two daemons, not this wire's."""

    frame: Frame


DaemonEvent: TypeAlias = Updated | PodsNamed | Certified | CertificateRefused | Extra
ControlEvent: TypeAlias = Greeted | Acked | CertificateAsked | PodReported | Extra

_KINDS = {"hello", "ack", "csr", "report", "update", "certificate", "pods"}
_LISTS = ("workloads", "services", "policies", "removed_workloads", "removed_services", "removed_policies")


class _End:
    """What both ends share: frames in, one hello first, and no word after an error."""

    def __init__(self) -> None:
        self._reader = FrameReader()
        self._greeted = False
        self._broken = False

    def _frames(self, data: bytes | memoryview) -> list[Frame]:
        self._require_whole()
        try:
            if not data and not self._reader.at_boundary():
                raise RemoteProtocolError("peer closed in the middle of a frame")
            return list(self._reader.feed(data))
        except ProtocolError:
            self._broken = True
            raise

    def _require_whole(self) -> None:
        if self._broken:
            raise LocalProtocolError("not possible after an error on this connection")

    def _require_greeted(self) -> None:
        self._require_whole()
        if not self._greeted:
            raise LocalProtocolError("not possible before hello")

    def extra(self, kind: str, **values: Any) -> bytes:
        """A frame of the daemons' own; *kind* must not be one of this wire's, except ``report``."""
        self._require_greeted()
        if kind in _KINDS and kind != "report":
            raise LocalProtocolError(f"{kind!r} is a kind of the distribution wire")
        return encode({"kind": kind, **values})


class DaemonEnd(_End):
    """A daemon's end.

    Use::

        end = DaemonEnd()
        send(end.hello())
        for event in end.receive_data(data):
            match event:
                case Updated(nonce, change):
                    mesh.apply(change)
                    send(end.ack(nonce))
    """

    def __init__(self) -> None:
        super().__init__()
        self._slices: dict[int, _Gathered] = {}
        self._pods: dict[str, NodePod] = {}
        self._unacked: set[int] = set()
        self._asked: set[int] = set()

    def hello(self) -> bytes:
        """Open the conversation. Must be called first, once."""
        self._require_whole()
        if self._greeted:
            raise LocalProtocolError("hello was said already")
        self._greeted = True
        return encode({"kind": "hello", "version": VERSION})

    def ack(self, nonce: int, error: str = "") -> bytes:
        """Say that the event with *nonce* was applied, or why it could not be."""
        self._require_greeted()
        if nonce not in self._unacked:
            raise LocalProtocolError(f"nothing to ack with nonce {nonce}")
        self._unacked.discard(nonce)
        return encode({"kind": "ack", "nonce": nonce, "error": error})

    def csr(self, number: int, identity: SpiffeId, csr: bytes) -> bytes:
        """Ask for a certificate; the answer carries *number*, which the caller chooses."""
        self._require_greeted()
        if number in self._asked:
            raise LocalProtocolError(f"csr {number} has no answer yet")
        self._asked.add(number)
        return encode({"kind": "csr", "id": number, "identity": str(identity), "csr": csr})

    def report(self, report: PodReport) -> bytes:
        """The agent's word on one pod."""
        self._require_greeted()
        return encode({"kind": "report", **to_wire(report)})

    def receive_data(self, data: bytes | memoryview) -> list[DaemonEvent]:
        """Take what the socket gave; ``b""`` means control closed.

        Raises:
            RemoteProtocolError: control broke the protocol.
        """
        try:
            return [event for frame in self._frames(data) for event in self._read(frame)]
        except ProtocolError:
            self._broken = True
            raise

    def _read(self, frame: Frame) -> Iterator[DaemonEvent]:
        if not self._greeted:
            raise RemoteProtocolError("control spoke before hello")
        match frame:
            case {"kind": "update", "nonce": int(nonce)}:
                yield from self._update(nonce, frame)
            case {
                "kind": "pods",
                "nonce": int(nonce),
                "pods": list(pods),
                "removed": list(removed),
                "more": bool(more),
            }:
                yield from self._pods_differ(nonce, pods, _names(removed), more=more)
            case {"kind": "certificate", "id": int(number)}:
                yield self._certificate(number, frame)
            case {"kind": str(kind)} if kind not in _KINDS:
                yield Extra(frame)
            case _:
                raise RemoteProtocolError(f"{frame.get('kind')!r} is not allowed here, or lacks a field")

    def _update(self, nonce: int, frame: Frame) -> Iterator[Updated]:
        if nonce in self._unacked:
            raise RemoteProtocolError(f"nonce {nonce} is in use")
        more = frame.get("more")
        if not isinstance(more, bool):
            raise RemoteProtocolError("update without 'more'")
        part = _change(frame)
        before = self._slices.pop(nonce, None)
        if before is None and not more:
            self._unacked.add(nonce)
            yield Updated(nonce, part)
            return
        gathered = before or _Gathered(part.snapshot)
        gathered.add(part)
        if more:
            self._slices[nonce] = gathered
        else:
            self._unacked.add(nonce)
            yield Updated(nonce, gathered.change())

    def _pods_differ(
        self, nonce: int, pods: list[Any], removed: tuple[str, ...], *, more: bool
    ) -> Iterator[PodsNamed]:
        for uid in removed:
            self._pods.pop(uid, None)
        for value in pods:
            pod = from_wire(NodePod, value)
            self._pods[pod.uid] = pod
        if len(self._pods) > MAX_NODE_PODS:
            raise RemoteProtocolError(f"a node of over {MAX_NODE_PODS} pods")
        if not more:
            self._unacked.add(nonce)
            yield PodsNamed(nonce, tuple(self._pods.values()))

    def _certificate(self, number: int, frame: Frame) -> DaemonEvent:
        if number not in self._asked:
            raise RemoteProtocolError(f"a certificate nobody asked for: {number}")
        self._asked.discard(number)
        match frame:
            case {"error": str(error)} if error:
                return CertificateRefused(number, error)
            case {"chain": [*chain], "roots": [*roots], "not_after": int() | float() as not_after}:
                return Certified(number, _ders(chain), _ders(roots), float(not_after))
            case _:
                raise RemoteProtocolError("a certificate needs a chain, roots and not_after")


class ControlEnd(_End):
    """Control's end of the connection to one daemon; it chooses the nonces."""

    def __init__(self) -> None:
        super().__init__()
        self._nonce = 0
        self._pods: dict[str, NodePod] = {}
        self._unacked: set[int] = set()
        self._asked: set[int] = set()

    @property
    def unacked(self) -> frozenset[int]:
        """Nonces that were sent and not yet acked."""
        return frozenset(self._unacked)

    def receive_data(self, data: bytes | memoryview) -> list[ControlEvent]:
        """Take what the socket gave; ``b""`` means the daemon closed.

        Raises:
            RemoteProtocolError: the daemon broke the protocol.
        """
        try:
            return [self._read(frame) for frame in self._frames(data)]
        except ProtocolError:
            self._broken = True
            raise

    def update(self, change: Change, *, slice_resources: int = SLICE_RESOURCES) -> tuple[int, bytes]:
        """Return the nonce and the bytes (all slices) that carry *change*."""
        nonce = self._next()
        parts = list(_slices(change, slice_resources))
        frames = [
            encode(
                {"kind": "update", "nonce": nonce, "snapshot": change.snapshot}
                | {"more": index + 1 < len(parts), **part}
            )
            for index, part in enumerate(parts)
        ]
        return nonce, b"".join(frames)

    def pods(self, pods: Iterable[NodePod]) -> tuple[int, bytes]:
        """Return the nonce and the bytes that make *pods* an agent's full list."""
        nonce = self._next()
        before, self._pods = self._pods, {pod.uid: pod for pod in pods}
        removed = [uid for uid in before if uid not in self._pods]
        changed = [
            to_wire(pod)
            for uid, pod in self._pods.items()
            if (old := before.get(uid)) is not pod and old != pod
        ]
        frames = [
            encode(
                {"kind": "pods", "nonce": nonce, "pods": changed[start : start + SLICE_PODS]}
                | {"removed": [] if start else removed, "more": start + SLICE_PODS < len(changed)}
            )
            for start in range(0, max(len(changed), 1), SLICE_PODS)
        ]
        return nonce, b"".join(frames)

    def certificate(
        self, number: int, chain: Sequence[bytes], roots: Sequence[bytes], not_after: float
    ) -> bytes:
        """Answer csr *number* with DER certificates, leaf first."""
        self._answer(number)
        return encode(
            {"kind": "certificate", "id": number, "chain": list(chain), "roots": list(roots)}
            | {"not_after": not_after, "error": ""}
        )

    def refuse(self, number: int, error: str) -> bytes:
        """Answer csr *number* with a reason."""
        self._answer(number)
        return encode({"kind": "certificate", "id": number, "error": error or "refused"})

    def _next(self) -> int:
        self._require_greeted()
        self._nonce += 1
        self._unacked.add(self._nonce)
        return self._nonce

    def _answer(self, number: int) -> None:
        self._require_greeted()
        if number not in self._asked:
            raise LocalProtocolError(f"no open csr {number}")
        self._asked.discard(number)

    def _read(self, frame: Frame) -> ControlEvent:
        kind = frame.get("kind")
        if (kind == "hello") == self._greeted:
            raise RemoteProtocolError(
                f"{kind!r} is not allowed {'twice' if self._greeted else 'before hello'}"
            )
        match frame:
            case {"kind": "hello", "version": int(version)}:
                if version != VERSION:
                    raise RemoteProtocolError(f"version {version} is not spoken here, only {VERSION}")
                self._greeted = True
                return Greeted(version)
            case {"kind": "ack", "nonce": int(nonce), "error": str(error)}:
                if nonce not in self._unacked:
                    raise RemoteProtocolError(f"ack of nonce {nonce}, which is not open")
                self._unacked.discard(nonce)
                return Acked(nonce, error)
            case {"kind": "csr", "id": int(number), "identity": str(uri), "csr": bytes(der)}:
                return self._asked_for(number, uri, der)
            case {"kind": "report", "pod": str(), "state": str()}:
                return PodReported(from_wire(PodReport, {k: v for k, v in frame.items() if k != "kind"}))
            case {"kind": str(kind)} if kind not in _KINDS or kind == "report":
                return Extra(frame)
            case _:
                raise RemoteProtocolError(f"{kind!r} is not allowed here, or lacks a field")

    def _asked_for(self, number: int, uri: str, der: bytes) -> CertificateAsked:
        if number in self._asked:
            raise RemoteProtocolError(f"csr {number} is open already")
        if len(der) > MAX_DER_BYTES:
            raise RemoteProtocolError(f"csr of {len(der)} bytes, limit {MAX_DER_BYTES}")
        identity = from_wire(_Named, {"identity": uri}).identity
        self._asked.add(number)
        return CertificateAsked(number, identity, der)


@dataclass(frozen=True, slots=True)
class _Named:
    identity: SpiffeId


def _ders(values: list[Any]) -> tuple[bytes, ...]:
    if not values or not all(isinstance(der, bytes) and len(der) <= MAX_DER_BYTES for der in values):
        raise RemoteProtocolError("a chain is a list of DER certificates")
    return tuple(values)


def _slices(change: Change, size: int) -> Iterator[dict[str, list[Any]]]:
    """Cut *change* into maps of at most *size* resources; one empty map for an empty change."""
    everything: list[tuple[str, Any]] = []
    for name in _LISTS:
        values = getattr(change, name)
        plain = name.startswith("removed_")
        everything += [(name, value if plain else to_wire(value)) for value in values]
    for start in range(0, max(len(everything), 1), size):
        part: dict[str, list[Any]] = {}
        for name, value in everything[start : start + size]:
            part.setdefault(name, []).append(value)
        yield part


def _change(frame: Frame) -> Change:
    """Read one slice."""
    lists = {name: frame.get(name, []) for name in _LISTS}
    snapshot = frame.get("snapshot")
    if not isinstance(snapshot, bool) or not all(isinstance(each, list) for each in lists.values()):
        raise RemoteProtocolError("update: a list or 'snapshot' is missing or of a wrong type")
    return Change(
        workloads=tuple(from_wire(Workload, value) for value in lists["workloads"]),
        services=tuple(from_wire(Service, value) for value in lists["services"]),
        policies=tuple(from_wire(Policy, value) for value in lists["policies"]),
        removed_workloads=_names(lists["removed_workloads"]),
        removed_services=_names(lists["removed_services"]),
        removed_policies=_names(lists["removed_policies"]),
        snapshot=snapshot,
    )


def _names(values: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise RemoteProtocolError("removed names are text")
    return tuple(values)


class _Gathered:
    """The slices of one update that have come so far."""

    def __init__(self, snapshot: bool) -> None:
        self._snapshot = snapshot
        self._size = 0
        self._lists: dict[str, list[Any]] = {name: [] for name in _LISTS}

    def add(self, part: Change) -> None:
        """One more."""
        if part.snapshot != self._snapshot:
            raise RemoteProtocolError("slices of one update disagree about 'snapshot'")
        self._size += part.size
        if self._size > MAX_UPDATE_RESOURCES:
            raise RemoteProtocolError(f"an update of over {MAX_UPDATE_RESOURCES} resources")
        for name, values in self._lists.items():
            values += getattr(part, name)

    def change(self) -> Change:
        """All of them as one change."""
        return Change(
            snapshot=self._snapshot, **{name: tuple(values) for name, values in self._lists.items()}
        )
