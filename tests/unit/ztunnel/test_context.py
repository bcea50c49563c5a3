"""The set of open connections, and the peers it contains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from ztunnel.connection import ProxiedConnection
from ztunnel.context import OpenConnections


@dataclass(eq=False)
class FakeConnection:
    """As much of a connection as the set looks at."""

    source: tuple[str, int]


def connection(port: int) -> ProxiedConnection:
    return cast(ProxiedConnection, FakeConnection(("10.0.0.1", port)))


def test_a_peer_is_live_until_its_last_stream_has_ended() -> None:
    """Its port must not be taken for a connection of ours until then."""
    connections, ended = OpenConnections(), list[str]()
    connections.on_empty = lambda: ended.append("empty")
    first, second = connection(1), connection(1)
    connections.add(first)
    connections.add(second)
    assert len(connections) == 2

    connections.discard(first)
    assert ("10.0.0.1", 1) in connections
    assert ended == []
    connections.discard(second)
    assert ("10.0.0.1", 1) not in connections
    assert ended == ["empty"]
    assert connections.all() == ()


def test_without_a_listener_it_ends_in_silence() -> None:
    """A proxy that was never drained."""
    connections = OpenConnections()
    one = connection(1)
    connections.add(one)
    connections.discard(one)
    assert len(connections) == 0
