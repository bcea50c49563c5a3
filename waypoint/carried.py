"""Connections that are carried as bytes: whatever is not HTTP by its service's word."""

from __future__ import annotations

from collections.abc import Callable

from ambient.engine.channel import Channel
from ambient.engine.relay import Relay, RelayCounts, relay
from ambient.errors import Unavailable
from ambient.model.record import AccessRecord, Direction, Flag
from waypoint.client import Client, peer_of
from waypoint.context import Context
from waypoint.upstreams import Target, Upstreams

DRAINED = "connection closed due to connection drain"


class OpenConnections:
    """The carried connections of one proxy, for drain and shutdown."""

    def __init__(self) -> None:
        self._all: set[Carried] = set()
        self.on_empty: Callable[[], None] | None = None

    def __len__(self) -> int:
        return len(self._all)

    def add(self, connection: Carried) -> None:
        """One more."""
        self._all.add(connection)

    def discard(self, connection: Carried) -> None:
        """One less."""
        self._all.discard(connection)
        if not self._all and self.on_empty is not None:
            self.on_empty()

    def abort(self, reason: str = DRAINED) -> None:
        """End all of them; each still writes its record."""
        for connection in list(self._all):
            connection.abort(reason)


class Carried:
    """One connection from a client to a target.

    Args:
        accept: Returns the client's channel once the target was reached.
        refuse: Tells the client that it was not; gets the reason.
    """

    def __init__(
        self,
        context: Context,
        open_connections: OpenConnections,
        client: Client,
        target: Target,
        accept: Callable[[], Channel],
        refuse: Callable[[Exception], None],
    ) -> None:
        self._context = context
        self._open = open_connections
        self._client = client
        self._target = target
        self._accept = accept
        self._refuse = refuse
        self._started = context.reactor.now()
        self._relay: Relay | None = None
        self._given_up: Exception | None = None
        open_connections.add(self)

    def begin(self, upstreams: Upstreams) -> None:
        """Reach the target."""
        upstreams.dial(self._target, self._reached, self._client.traceparent)

    def abort(self, reason: str) -> None:
        """End it now."""
        self._given_up = Unavailable(reason)
        if self._relay is not None:
            self._relay.abort(self._given_up)

    def _reached(self, upstream: Channel | Exception) -> None:
        if isinstance(upstream, Exception):
            self._refuse(upstream)
            self._finish(0, 0, upstream, Flag.CONNECT)
            return
        if self._given_up is not None:
            upstream.abort()
            self._refuse(self._given_up)
            self._finish(0, 0, self._given_up, Flag.CONNECT)
            return
        self._relay = relay(self._context.reactor, self._accept(), upstream, self._relayed)

    def _relayed(self, counts: RelayCounts) -> None:
        self._finish(counts.a_to_b, counts.b_to_a, counts.error, Flag.NONE)

    def _finish(self, requested: int, responded: int, error: Exception | None, flag: Flag) -> None:
        self._open.discard(self)
        client, target = self._client, self._target
        outbound = client.direction is Direction.OUTBOUND
        journal = self._context.journal
        journal.connection(
            AccessRecord(
                ended=journal.now(),
                direction=client.direction,
                source=client.source,
                destination=peer_of(target.authority, target.workload, target.identity),
                service=target.hostname,
                bytes_sent=requested if outbound else responded,
                bytes_received=responded if outbound else requested,
                duration=self._context.reactor.now() - self._started,
                error=str(error) if error is not None else "",
                flag=flag,
            )
        )
