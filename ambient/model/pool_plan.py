"""Which request uses which HBONE connection: the pool's decisions, without the pool.

Floor 0: pure. Time is an argument; connections are numbers that the plan hands out; requests are opaque.
The pool tells the plan what happened and does what the answer says.

    request -> Assign                       a connection has room
            -> Open, ... opened -> Assign    the first users of a key share one handshake: one goes ahead,
                        limited -> Assign*   the others wait for the peer's limit (SETTINGS, a round trip),
                  failed, gone -> Fail*      and all of them learn of its failure

Differences from Istio's pool (ztunnel.md 4), on purpose: nobody waits for a dead destination one after
another, and a connection that was full is used again when it has room.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import TypeAlias

from ambient.model.identity import SpiffeId
from ambient.model.limits import Limits

_DEFAULT = Limits()
# Before the peer's SETTINGS: a peer may allow a single stream, and would refuse the others.
FIRST_STREAMS = 1


@dataclass(frozen=True, slots=True)
class PoolKey:
    """Requests with equal keys may share a connection.

    Attributes:
        source_uid: The pod on whose behalf, and from whose namespace, it is dialled.
        destination_uid: The destination workload (or waypoint); a restarted pod is another one, so
            that a reused address never meets an old connection.
        ip: Where the connection goes; *port* is 15008 but for tests.
        identities: Whom the peer's certificate may name.
    """

    source_uid: str
    source_identity: SpiffeId
    destination_uid: str
    ip: str
    port: int
    identities: frozenset[SpiffeId]
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Worked out once: every request is looked up by it, and identities are slow to hash.
        values = self.source_uid, self.source_identity, self.destination_uid, self.ip, self.port
        object.__setattr__(self, "_hash", hash((*values, self.identities)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Open:
    """Dial *key* as *connection*; answer with ``opened`` or ``failed``."""

    key: PoolKey
    connection: int


@dataclass(frozen=True, slots=True)
class Assign:
    """Open *request*'s stream on *connection*; answer with ``released`` when it has ended.

    Attributes:
        reused: The connection carried others before, so it may turn out to be dead.
    """

    request: Hashable
    connection: int
    reused: bool


@dataclass(frozen=True, slots=True)
class Fail:
    """The connection that *request* waited for could not be made."""

    request: Hashable
    connection: int


@dataclass(frozen=True, slots=True)
class Close:
    """Close *connection*: it carries nothing, and has not for a while or is no longer wanted."""

    connection: int


Instruction: TypeAlias = Open | Assign | Fail | Close


@dataclass(slots=True)
class _Group:
    """Connections and waiting requests of one key."""

    connections: dict[int, _Connection] = field(default_factory=dict)
    waiting: deque[Hashable] = field(default_factory=deque)


@dataclass(slots=True)
class _Connection:
    key: PoolKey
    group: _Group
    connected: bool = False
    settled: bool = False  # The peer has said how many streams it takes.
    retired: bool = False  # Takes no more streams.
    streams: int = 0
    used: bool = False
    limit: int = _DEFAULT.streams_per_tunnel
    idle_since: float = 0.0
    opened_at: float = 0.0


class PoolPlan:
    """The state of the pool; every method returns what is to be done now, in order."""

    def __init__(
        self,
        *,
        max_streams: int = _DEFAULT.streams_per_tunnel,
        idle_seconds: float = _DEFAULT.pool_idle,
        max_age_seconds: float = _DEFAULT.pool_max_age,
    ) -> None:
        self._max_streams = max_streams
        self._idle_seconds = idle_seconds
        self._max_age_seconds = max_age_seconds
        self._groups: dict[PoolKey, _Group] = {}
        self._connections: dict[int, _Connection] = {}
        self._next = 1

    def request(self, key: PoolKey, request: Hashable, now: float) -> list[Instruction]:
        """*request* wants a stream."""
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = _Group()
        group.waiting.append(request)
        return self._serve(key, group)

    def lease(self, key: PoolKey) -> tuple[int, bool] | None:
        """``request`` for the usual case: (connection, reused) to be assigned; None: ask ``request``."""
        group = self._groups.get(key)
        if group is None or group.waiting:
            return None
        for number, entry in group.connections.items():
            if entry.streams < entry.limit and entry.connected and not entry.retired:
                entry.streams += 1
                reused, entry.used = entry.used, True
                return number, reused
        return None

    def opened(self, connection: int, now: float) -> list[Instruction]:
        """The handshake succeeded."""
        entry = self._connections.get(connection)
        if entry is None:
            return [Close(connection)]
        entry.connected = True
        entry.idle_since = entry.opened_at = now
        if entry.retired:
            self._drop(connection)
            return [Close(connection), *self._serve_group(entry.key)]
        return self._serve(entry.key, entry.group)

    def failed(self, connection: int) -> list[Instruction]:
        """The handshake failed; everyone who waits for the key learns of it."""
        entry = self._drop(connection)
        return [] if entry is None else self._fail_group(entry.key, connection)

    def released(self, connection: int, now: float) -> list[Instruction]:
        """One stream of *connection* ended (or was never opened)."""
        entry = self._connections.get(connection)
        if entry is None:
            return []
        entry.streams -= 1
        entry.idle_since = now
        if not entry.retired and not entry.group.waiting:
            return []
        if entry.retired and not entry.streams:
            self._drop(connection)
            self._tidy(entry.key)
            return [Close(connection)]
        return self._serve(entry.key, entry.group)

    def limited(self, connection: int, streams: int) -> list[Instruction]:
        """The peer allows *streams* at a time on *connection* (SETTINGS)."""
        entry = self._connections.get(connection)
        if entry is None:
            return []
        entry.settled = True
        entry.limit = min(streams, self._max_streams)
        return self._serve(entry.key, entry.group)

    def retire(self, connection: int) -> list[Instruction]:
        """*connection* takes no more streams (GOAWAY); those that live go on."""
        entry = self._connections.get(connection)
        if entry is None or entry.retired:
            return []
        entry.retired = True
        if entry.connected and not entry.streams:
            self._drop(connection)
            return [Close(connection), *self._serve_group(entry.key)]
        return self._serve_group(entry.key)

    def gone(self, connection: int) -> list[Instruction]:
        """*connection* has ended, and its streams with it.

        If the peer never said a word, such as when it refused our certificate, that is a failure of the
        handshake that we could not see earlier: another try would end the same way.
        """
        entry = self._drop(connection)
        if entry is None:
            return []
        if entry.connected and not entry.settled and not entry.retired:
            return self._fail_group(entry.key, connection)
        return self._serve_group(entry.key)

    def retire_where(self, matches: Callable[[PoolKey], bool]) -> list[Instruction]:
        """``retire`` every connection whose key *matches*."""
        found = [number for number, entry in self._connections.items() if matches(entry.key)]
        return [instruction for number in found for instruction in self.retire(number)]

    def tick(self, now: float) -> list[Instruction]:
        """Time passed: close what has been idle for too long, retire what is too old."""
        found: list[Instruction] = []
        for number, entry in list(self._connections.items()):
            if entry.connected and now - entry.opened_at >= self._max_age_seconds:
                found += self.retire(number)
            elif entry.connected and not entry.streams and now - entry.idle_since >= self._idle_seconds:
                self._drop(number)
                self._tidy(entry.key)
                found.append(Close(number))
        return found

    def waiting(self) -> int:
        """Requests without a connection."""
        return sum(len(group.waiting) for group in self._groups.values())

    def validate(self) -> None:
        """Assert every invariant; property tests call it after each step."""
        for number, entry in self._connections.items():
            assert self._groups[entry.key].connections[number] is entry
            assert 0 <= entry.streams <= max(self._max_streams, entry.limit)
            assert entry.connected or not entry.streams
        for group in self._groups.values():
            assert group.connections or group.waiting, "an empty group is garbage"
            if group.waiting:
                assert not any(self._room(each) > 0 for each in group.connections.values())
                assert any(not each.settled and not each.retired for each in group.connections.values())

    # Inside --------------------------------------------------------------------------------------

    def _serve_group(self, key: PoolKey) -> list[Instruction]:
        group = self._groups.get(key)
        if group is None:
            return []
        found = self._serve(key, group)
        self._tidy(key)
        return found

    def _serve(self, key: PoolKey, group: _Group) -> list[Instruction]:
        found: list[Instruction] = []
        if not group.waiting:
            return found
        for number, entry in group.connections.items():
            while group.waiting and self._room(entry) > 0:
                entry.streams += 1
                found.append(Assign(group.waiting.popleft(), number, entry.used))
                entry.used = True
            if not group.waiting:
                return found
        opening = sum(not each.settled and not each.retired for each in group.connections.values())
        if not opening:
            found.append(self._open(key, group))
        return found

    def _fail_group(self, key: PoolKey, connection: int) -> list[Instruction]:
        group = self._groups.get(key)
        if group is None:
            return []
        failed = [Fail(request, connection) for request in group.waiting]
        group.waiting.clear()
        self._tidy(key)
        return list(failed)

    def _open(self, key: PoolKey, group: _Group) -> Open:
        number, self._next = self._next, self._next + 1
        self._connections[number] = group.connections[number] = _Connection(key, group, limit=FIRST_STREAMS)
        return Open(key, number)

    @staticmethod
    def _room(entry: _Connection) -> int:
        return entry.limit - entry.streams if entry.connected and not entry.retired else 0

    def _drop(self, connection: int) -> _Connection | None:
        entry = self._connections.pop(connection, None)
        if entry is not None:
            del entry.group.connections[connection]
        return entry

    def _tidy(self, key: PoolKey) -> None:
        group = self._groups.get(key)
        if group is not None and not group.connections and not group.waiting:
            del self._groups[key]
