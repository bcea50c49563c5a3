"""Pooled HBONE connections: one handshake for many streams.

Floor 2: obeys ``ambient.model.pool_plan``, which decides; here are the descriptors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from ambient.engine.reactor import Reactor
from ambient.engine.tls import TlsChannel
from ambient.engine.tunnel import Headers, OnOpened
from ambient.model.pool_plan import PoolKey

# dialler(key, on_connected(TlsChannel | Exception)): dial, shake hands, verify.
OnConnected: TypeAlias = Callable[[TlsChannel | Exception], None]
Dialler: TypeAlias = Callable[[PoolKey, OnConnected], None]


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """The pool now, and since its start."""

    connections: int
    streams: int
    handshakes: int
    waiting: int


class TunnelPool:
    """HBONE connections of one or many workloads, found by ``PoolKey``.

    Args:
        dialler: Makes the mutual-TLS channel for a key; ``hbone_dialler`` makes one.
    """

    def __init__(self, reactor: Reactor, dialler: Dialler) -> None:
        raise NotImplementedError

    def open(self, key: PoolKey, authority: str, headers: Headers, on_opened: OnOpened) -> None:
        """Open a stream on a pooled connection, or on a new one; *on_opened* as in ``open_stream``.

        Concurrent first users share one handshake and all learn of its failure. A pooled connection
        that turns out dead before it answered is replaced once.
        """
        raise NotImplementedError

    def close_where(self, matches: Callable[[PoolKey], bool]) -> None:
        """Let connections whose key *matches* end with their last stream, and use them no more."""
        raise NotImplementedError

    def close(self) -> None:
        """End every connection and stream now."""
        raise NotImplementedError

    def statistics(self) -> PoolStatistics:
        """What it holds."""
        raise NotImplementedError
