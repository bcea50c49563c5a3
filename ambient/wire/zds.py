"""ZDS, the enrollment channel: the node agent tells ztunnel which workloads to serve.

Floor 1: sans-IO, both ends. One SEQPACKET packet carries one msgpack map; the descriptor of the
workload's network namespace travels beside its ``add`` as ancillary data, which the shell carries.

Source: Istio's ``zds.proto``, with its message names; protobuf is replaced by msgpack. Ours: ``drained``,
which lets the agent keep what live connections need until the last of them has ended, and ``listeners``,
``key`` and ``retire``, which let one ztunnel follow another without a refused connection.

Theory of operation
===================

    agent                                   ztunnel
      |            hello                       |   HELLO
      |<---------------------------------------|
      |  add (+fd), del   each is answered     |   SNAPSHOT
      |--------------------------------------->|
      |  snapshot_sent    by one ack, in order |
      |--------------------------------------->|   LIVE
      |  add (+fd), del                        |
      |--------------------------------------->|
      |  drained, listeners, key (+fds)        |
      |  whenever it is true                   |
      |<---------------------------------------|

What ztunnel passes with ``listeners`` (of a workload; of the node itself: uid "") and ``key`` (a sealed
memfd) the agent only holds, and passes to the next ztunnel before the ``add`` that needs it. When that one
has its snapshot, the one before it is told to ``retire``: it accepts no more, keeps what it has, and says
so in its ``hello`` if it has to dial again.

Until ``snapshot_sent`` ztunnel may not drop a workload that it already serves: the agent may only not
have named it yet. At that moment whatever was not named is gone, so ``SnapshotSent`` carries all names.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeAlias

import msgpack

from ambient.errors import ConfigError, LocalProtocolError, ProtocolError, RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.wire.frames import Frame, decode_map

VERSION = 1

# An ``add`` with the longest names Kubernetes allows and a 2048-byte identity is below 4 KiB.
MAX_PACKET_BYTES = 4096

# Kubernetes' longest: cluster, kind, namespace, name (253 each at most) and our generation. Picked.
MAX_UID_CHARACTERS = 1024
# Of a peer's text in a message.
MAX_SHOWN = 64

# Requests an agent may have under way; it is far more patient than any node has pods (250). Picked.
MAX_UNANSWERED = 4096

# Listeners beside one packet: a workload has three and its name servers; the kernel takes 253. Picked.
MAX_LISTENERS = 16


class State(Enum):
    """Where the conversation stands; both ends go through the same states."""

    HELLO = auto()
    SNAPSHOT = auto()
    LIVE = auto()
    ERROR = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadInfo:
    """Whom an ``add`` is about.

    Attributes:
        uid: The workload's uid in the mesh.
        dns_capture: Whether the pod's DNS is to be captured as well.
    """

    uid: str
    name: str
    namespace: str
    service_account: str
    identity: SpiffeId
    dns_capture: bool = False


@dataclass(frozen=True, slots=True)
class WorkloadAdded:
    """Start serving *workload* inside *netns_fd*, which is now the receiver's; answer with ``ack``."""

    workload: WorkloadInfo
    netns_fd: int


@dataclass(frozen=True, slots=True)
class WorkloadRemoved:
    """Stop serving *uid*; answer with ``ack``."""

    uid: str


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """The agent has named everything: whatever is not in *uids* is gone. Answer with ``ack``."""

    uids: frozenset[str]


@dataclass(frozen=True, slots=True)
class ListenersPassed:
    """Listening sockets of *uid* ("": of the node itself), now the receiver's.

    Attributes:
        sockets: (port, descriptor) of each.
    """

    uid: str
    sockets: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class KeyPassed:
    """A certificate with its key, in a sealed memfd that is now the receiver's."""

    identity: SpiffeId
    fd: int


@dataclass(frozen=True, slots=True)
class Retired:
    """A newer ztunnel serves the node: accept nothing any more, keep what there is. Answer with ``ack``."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A whole request that means nothing to us; close its descriptors, answer with ``ack(reason)``."""

    reason: str


@dataclass(frozen=True, slots=True)
class Greeted:
    """ztunnel is there and understands us; the snapshot may begin, unless it has *retired*."""

    retired: bool = False


@dataclass(frozen=True, slots=True)
class Acked:
    """The oldest open request was answered.

    Attributes:
        request: The kind of the request: ``"add"``, ``"del"``, ``"snapshot_sent"``, ...
        uid: The request's workload, "" where there is none.
        error: Why it could not be done; "" if it was.
    """

    request: str
    uid: str
    error: str


@dataclass(frozen=True, slots=True)
class Drained:
    """The last proxied connection of the removed workload *uid* has ended."""

    uid: str


ZtunnelEvent: TypeAlias = (
    WorkloadAdded | WorkloadRemoved | SnapshotSent | ListenersPassed | KeyPassed | Retired | Refused
)
AgentEvent: TypeAlias = Greeted | Acked | Drained | ListenersPassed | KeyPassed

# (state, message kind) -> next state, one table an end. Whatever is not listed is an error: all of the
# protocol's order stands here and nowhere else.
_TO_ZTUNNEL: dict[tuple[State, str], State] = {
    (State.SNAPSHOT, "add"): State.SNAPSHOT,
    (State.SNAPSHOT, "del"): State.SNAPSHOT,
    (State.SNAPSHOT, "listeners"): State.SNAPSHOT,
    (State.SNAPSHOT, "key"): State.SNAPSHOT,
    (State.SNAPSHOT, "retire"): State.SNAPSHOT,
    (State.SNAPSHOT, "snapshot_sent"): State.LIVE,
    (State.LIVE, "add"): State.LIVE,
    (State.LIVE, "del"): State.LIVE,
    (State.LIVE, "listeners"): State.LIVE,
    (State.LIVE, "key"): State.LIVE,
    (State.LIVE, "retire"): State.LIVE,
}
_TO_AGENT: dict[tuple[State, str], State] = {
    (State.HELLO, "hello"): State.SNAPSHOT,
    (State.SNAPSHOT, "ack"): State.SNAPSHOT,
    (State.SNAPSHOT, "drained"): State.SNAPSHOT,
    (State.SNAPSHOT, "listeners"): State.SNAPSHOT,
    (State.SNAPSHOT, "key"): State.SNAPSHOT,
    (State.LIVE, "ack"): State.LIVE,
    (State.LIVE, "drained"): State.LIVE,
    (State.LIVE, "listeners"): State.LIVE,
    (State.LIVE, "key"): State.LIVE,
}

_MAY_SPEAK = (State.SNAPSHOT, State.LIVE)


class _Connection:
    """What both ends share: the state, and that no error leaves it usable."""

    def __init__(self) -> None:
        self.state = State.HELLO

    def _require(self, *states: State) -> None:
        if self.state not in states:
            raise LocalProtocolError(f"not possible in state {self.state.name}")

    @staticmethod
    def _require_whole(data: bytes, truncated: bool) -> None:
        if truncated or len(data) > MAX_PACKET_BYTES:
            raise RemoteProtocolError(f"packet cut or over {MAX_PACKET_BYTES} bytes, or its descriptors cut")

    def _decode(
        self, table: dict[tuple[State, str], State], data: bytes, truncated: bool
    ) -> tuple[Frame, State]:
        self._require_whole(data, truncated)
        frame = decode_map(data)
        return frame, self._next(table, frame)

    def _next(self, table: dict[tuple[State, str], State], frame: Frame) -> State:
        kind = str(frame.get("kind"))
        next_state = table.get((self.state, kind))
        if next_state is None:
            raise RemoteProtocolError(f"{kind[:MAX_SHOWN]!r} is not allowed in {self.state.name}")
        return next_state


class ZtunnelConnection(_Connection):
    """ztunnel's end of one ZDS connection.

    Use::

        connection = ZtunnelConnection()
        await send(connection.hello())
        while packet := await receive():
            event = connection.receive_packet(packet.data, packet.fds)
            ...                                   # act on it
            await send(connection.ack())

    After any exception the connection is in ``State.ERROR`` and every further call raises
    ``LocalProtocolError``. Descriptors of a refused packet remain the caller's to close.
    """

    def __init__(self) -> None:
        super().__init__()
        self._named: set[str] = set()
        self._unacked = 0

    def hello(self, *, retired: bool = False) -> bytes:
        """Open the conversation. Must be called first, once.

        Args:
            retired: We were told so on an earlier connection, and want no snapshot.
        """
        self._require(State.HELLO)
        self.state = State.SNAPSHOT
        return _encode({"kind": "hello", "version": VERSION, "retired": retired})

    def receive_packet(self, data: bytes, fds: Sequence[int] = (), truncated: bool = False) -> ZtunnelEvent:
        """Say what one packet means.

        Args:
            data: The packet. An empty one is the end of the connection: do not pass it on.
            fds: The descriptors that came beside it.
            truncated: The kernel said that the packet or its descriptors were cut.

        A request that is whole, but makes no sense, is ``Refused``: every request has its answer, so both
        ends stay in step, and one of a newer agent costs no more than itself.

        Raises:
            RemoteProtocolError: the packet was cut, or is no map: who knows what it was meant to be.
        """
        self._require(*_MAY_SPEAK)
        try:
            self._require_whole(data, truncated)
            frame = decode_map(data)
        except ProtocolError:
            self.state = State.ERROR
            raise
        self._unacked += 1
        try:
            next_state = self._next(_TO_ZTUNNEL, frame)
            _require_descriptors(frame, fds)
            event = self._read(frame, fds)
        except RemoteProtocolError as exc:
            return Refused(str(exc))
        self.state = next_state
        return event

    def ack(self, error: str = "") -> bytes:
        """Answer the oldest event not yet answered; *error* says why it could not be done."""
        self._require(*_MAY_SPEAK)
        if not self._unacked:
            raise LocalProtocolError("ack without a request to answer")
        self._unacked -= 1
        # A reason from the depths (an OSError, a certificate's text) must not break the bound.
        return _encode({"kind": "ack", "error": error[: MAX_PACKET_BYTES // 8]})

    def drained(self, uid: str) -> bytes:
        """Say that the last proxied connection of *uid* has ended."""
        self._require(*_MAY_SPEAK)
        return _encode({"kind": "drained", "uid": uid})

    def listeners(self, uid: str, ports: Sequence[int]) -> bytes:
        """Have the agent hold the listeners of *uid*; send one descriptor for each of *ports* beside it."""
        self._require(*_MAY_SPEAK)
        return _encode(_listeners(uid, ports))

    def key(self, identity: SpiffeId) -> bytes:
        """Have the agent hold a certificate and its key; send one sealed memfd beside it."""
        self._require(*_MAY_SPEAK)
        return _encode({"kind": "key", "identity": str(identity)})

    def _read(self, frame: Frame, fds: Sequence[int]) -> ZtunnelEvent:
        match frame:
            case {"kind": "listeners" | "key"}:
                return _read_passed(frame, fds)
            case {"kind": "retire"}:
                return Retired()
            case {"kind": "add"}:
                workload = _read_workload(frame)
                self._named.add(workload.uid)
                return WorkloadAdded(workload, fds[0])
            case {"kind": "del", "uid": str(uid)}:
                self._named.discard(uid)
                return WorkloadRemoved(uid)
            case {"kind": "snapshot_sent"}:
                return SnapshotSent(frozenset(self._named))
            case _:
                raise RemoteProtocolError(f"{frame['kind']!r} lacks a field or has a wrong type")


class AgentConnection(_Connection):
    """The agent's end of one ZDS connection; errors as in ``ZtunnelConnection``."""

    def __init__(self) -> None:
        super().__init__()
        self._open: deque[tuple[str, str]] = deque()

    @property
    def unanswered(self) -> int:
        """How many requests have no ack yet."""
        return len(self._open)

    def receive_packet(self, data: bytes, fds: Sequence[int] = (), truncated: bool = False) -> AgentEvent:
        """Say what one packet of ztunnel's means.

        Raises:
            RemoteProtocolError: ztunnel broke the protocol.
        """
        self._require(State.HELLO, *_MAY_SPEAK)
        try:
            frame, next_state = self._decode(_TO_AGENT, data, truncated)
            _require_descriptors(frame, fds)
            event = self._read(frame, fds)
        except ProtocolError:
            self.state = State.ERROR
            raise
        self.state = next_state
        return event

    def add(self, workload: WorkloadInfo) -> bytes:
        """Ask to serve *workload*; send exactly one namespace descriptor beside it."""
        frame = {
            "kind": "add",
            "uid": workload.uid,
            "name": workload.name,
            "namespace": workload.namespace,
            "service_account": workload.service_account,
            "identity": str(workload.identity),
            "dns_capture": workload.dns_capture,
        }
        return self._request("add", workload.uid, frame)

    def delete(self, uid: str) -> bytes:
        """Ask to stop serving *uid*."""
        return self._request("del", uid, {"kind": "del", "uid": uid})

    def snapshot_sent(self) -> bytes:
        """Say that everything has been named. Once."""
        self._require(State.SNAPSHOT)
        packet = self._request("snapshot_sent", "", {"kind": "snapshot_sent"})
        self.state = State.LIVE
        return packet

    def listeners(self, uid: str, ports: Sequence[int]) -> bytes:
        """Pass on the listeners of *uid*; send one descriptor for each of *ports* beside it."""
        return self._request("listeners", uid, _listeners(uid, ports))

    def key(self, identity: SpiffeId) -> bytes:
        """Pass on a certificate and its key; send the sealed memfd beside it."""
        return self._request("key", "", {"kind": "key", "identity": str(identity)})

    def retire(self) -> bytes:
        """Say that a newer ztunnel serves the node."""
        return self._request("retire", "", {"kind": "retire"})

    def _request(self, kind: str, uid: str, frame: Frame) -> bytes:
        self._require(*_MAY_SPEAK)
        if len(self._open) >= MAX_UNANSWERED:
            raise LocalProtocolError(f"{MAX_UNANSWERED} requests without an ack")
        packet = _encode(frame)
        self._open.append((kind, uid))
        return packet

    def _read(self, frame: Frame, fds: Sequence[int]) -> AgentEvent:
        match frame:
            case {"kind": "listeners" | "key"}:
                return _read_passed(frame, fds)
            case {"kind": "hello", "version": int(version)} if isinstance(frame.get("retired", False), bool):
                if version != VERSION:
                    raise RemoteProtocolError(f"ztunnel speaks ZDS {version}, we speak {VERSION}")
                return Greeted(frame.get("retired", False))
            case {"kind": "ack", "error": str(error)}:
                if not self._open:
                    raise RemoteProtocolError("ack without a request")
                return Acked(*self._open.popleft(), error)
            case {"kind": "drained", "uid": str(uid)}:
                return Drained(uid)
            case _:
                raise RemoteProtocolError(f"{frame['kind']!r} lacks a field or has a wrong type")


def _require_descriptors(frame: Frame, fds: Sequence[int]) -> None:
    """One descriptor beside ``add`` and ``key``, one a port beside ``listeners``, none beside the rest."""
    ports = frame.get("ports")
    expected = {"add": 1, "key": 1, "listeners": len(ports) if isinstance(ports, list) else -1}
    if len(fds) != expected.get(str(frame["kind"]), 0):
        raise RemoteProtocolError(f"{frame['kind']!r} with {len(fds)} descriptors")


def _listeners(uid: str, ports: Sequence[int]) -> Frame:
    if not 0 < len(ports) <= MAX_LISTENERS:
        raise LocalProtocolError(f"{len(ports)} listeners in a packet, limit {MAX_LISTENERS}")
    return {"kind": "listeners", "uid": uid, "ports": list(ports)}


def _read_passed(frame: Frame, fds: Sequence[int]) -> ListenersPassed | KeyPassed:
    match frame:
        case {"kind": "listeners", "uid": str(uid), "ports": list(ports)} if (
            0 < len(ports) <= MAX_LISTENERS
            and all(type(port) is int and 0 < port < 65536 for port in ports)
            and len(set(ports)) == len(ports)
        ):
            return ListenersPassed(uid, tuple(zip(ports, fds, strict=True)))
        case {"kind": "key", "identity": str(uri)}:
            return KeyPassed(_identity("a key", uri), fds[0])
        case _:
            raise RemoteProtocolError(f"{frame['kind']!r} lacks a field or has a wrong type")


def _read_workload(frame: Frame) -> WorkloadInfo:
    match frame:
        case {
            "uid": str(uid),
            "name": str(name),
            "namespace": str(namespace),
            "service_account": str(service_account),
            "identity": str(uri),
        } if _is_uid(uid) and isinstance(frame.get("dns_capture", False), bool):
            return WorkloadInfo(
                uid=uid,
                name=name,
                namespace=namespace,
                service_account=service_account,
                identity=_identity(uid, uri),
                dns_capture=frame.get("dns_capture", False),
            )
        case _:
            raise RemoteProtocolError("'add' lacks a field or has a wrong type")


def _is_uid(uid: str) -> bool:
    """It is a key, and part of log lines and messages; nobody makes a path of it, and nobody is to."""
    return 0 < len(uid) <= MAX_UID_CHARACTERS and uid.isprintable() and ".." not in uid.split("/")


def _identity(uid: str, uri: str) -> SpiffeId:
    try:
        return SpiffeId.parse(uri)
    except ConfigError as exc:
        raise RemoteProtocolError(f"add for {uid!r}: {exc}") from exc


def _encode(frame: Frame) -> bytes:
    packet: bytes = msgpack.packb(frame, use_bin_type=True)
    if len(packet) > MAX_PACKET_BYTES:
        raise LocalProtocolError(f"packet of {len(packet)} bytes, limit {MAX_PACKET_BYTES}")
    return packet
