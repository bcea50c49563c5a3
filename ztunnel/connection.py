"""One proxied connection: its facts as they become known, and exactly one record at its end."""

from __future__ import annotations

import logging
from dataclasses import replace
from time import monotonic

from ambient.engine.failure import describe, is_ordinary_end
from ambient.engine.relay import APART, Joined
from ambient.model.address import format_hostport
from ambient.model.identity import SpiffeId
from ambient.model.policy import Connection
from ambient.model.record import AccessRecord, Direction, Flag, Peer, format_ends
from ambient.model.workload import HBONE_PORT, Workload
from ztunnel.context import Context
from ztunnel.flow import Flow
from ztunnel.metrics import Series, Traffic
from ztunnel.network import Address

DRAINED = "connection closed due to connection drain"
POLICY_CHANGED = "connection closed due to policy change"


class Closed(Exception):
    """Why we ended a connection that was well: a drain, or a change of policy."""

    def __init__(self, reason: str, flag: Flag) -> None:
        super().__init__(reason)
        self.flag = flag


class ProxiedConnection(Joined):
    """Base of the three kinds; a subclass opens the two channels and joins them.

    Attributes:
        facts: What policy decided about, for inbound connections.
        traceparent: Of the CONNECT that carries it, if records tell of traces.
        source: The peer's address.
        finished: Whether the record is written.
    """

    __slots__ = (
        "_counted", "_destination", "_flow", "_series", "_started", "context", "facts",
        "finished", "source", "traceparent",
    )  # fmt: skip

    direction: Direction

    def __init__(self, context: Context, source: Address, destination: Address) -> None:
        self.context = context
        self.facts: Connection | None = None
        self.traceparent = ""
        self.source = source
        self._destination = destination
        self._started = monotonic()
        self._flow: Flow | None = None
        self._series: Series | None = None
        self.unclosed = APART
        self._counted = (0, 0)
        self.finished = False
        context.open.add(self)

    def attribute(
        self,
        *,
        source: Workload | None,
        destination: Workload | None,
        address: Address,
        hbone_address: str = "",
        service: str = "",
        source_identity: SpiffeId | None = None,
        destination_identity: SpiffeId | None = None,
    ) -> None:
        """Say whose connection it is; it is counted as opened from now on. Later calls correct the record."""
        traffic = Traffic(
            reporter=self.direction.reporter,
            source=source,
            destination=destination,
            service=service.partition("/")[2] or service,
            source_identity=source_identity,
            destination_identity=destination_identity,
        )
        self.attribute_to(Flow(traffic, address, hbone_address))

    def attribute_to(self, flow: Flow) -> None:
        """``attribute`` where others were before it."""
        self._flow = flow
        if self._series is None:
            if flow.series is None:
                flow.series = self.context.journal.opened(flow.traffic)
            else:
                flow.series.opened += 1
            self._series = flow.series
            if self.context.journal.levels.access < logging.INFO:
                self.context.journal.began(replace(self._record("", Flag.NONE, 0, 0), opened=True))

    def close(self, reason: str, flag: Flag = Flag.NONE) -> None:
        """End it now, whatever it is doing; the record says *reason*."""
        if self.finished:
            return
        if self.unclosed != APART:
            self.abort(Closed(reason, flag))
        else:
            self.give_up(Closed(reason, flag))
            self.finish(reason, flag)

    def give_up(self, reason: Closed) -> None:
        """Release what is held before there is a relay; subclasses say what that is."""
        raise NotImplementedError

    def finish(self, error: str = "", flag: Flag = Flag.NONE, requested: int = 0, responded: int = 0) -> None:
        """Write the record; every later call is ignored."""
        if self.finished:
            return
        self.finished = True
        series = self._series
        if series is not None:
            self._add(series, requested, responded)
        if error and self.unclosed == APART:
            self.context.journal.failed(
                self.direction.reporter, self._flow.traffic if self._flow else None, flag
            )
        self.context.journal.ended(self._record(error, flag, requested, responded), self._series)
        self.context.open.discard(self)

    def _ended_well(self, series: Series, requested: int, responded: int) -> None:
        """``finish`` of nearly all connections, in a fraction of the time."""
        before_requested, before_responded = self._counted
        series.received += requested - before_requested
        series.sent += responded - before_responded
        flow, context = self._flow, self.context
        assert flow is not None
        if not flow.ends:
            flow.ends = format_ends(self._record("", Flag.NONE, 0, 0))
        if self.direction is Direction.OUTBOUND:
            sent, received = requested, responded
        else:
            sent, received = responded, requested
        source, seconds = format_hostport(*self.source), monotonic() - self._started
        context.journal.ended_well(series, source, flow.ends, sent, received, seconds)
        context.open.discard(self)

    def count(self) -> None:
        """Bring the byte counters up to date: a long connection's bytes should not wait for its end."""
        if self.unclosed != APART and self._series is not None:
            requested, responded = self.counts()
            self._add(self._series, requested, responded)

    def _add(self, series: Series, requested: int, responded: int) -> None:
        before_requested, before_responded = self._counted
        self._counted = requested, responded
        series.received += requested - before_requested
        series.sent += responded - before_responded

    def leave(self) -> None:
        """End without a record: what it became writes its own."""
        self.finished = True
        self.context.open.discard(self)

    def dump(self) -> dict[str, str]:
        """Plain data for people, under ztunnel's names."""
        flow = self._flow
        actual = flow.address if flow else self._destination
        inner = flow.hbone_address if flow else ""
        return {
            "direction": self.direction.value,
            "protocol": "HBONE" if inner or actual[1] == HBONE_PORT else "TCP",
            "src": format_hostport(*self.source),
            "originalDst": inner or format_hostport(*actual),
            "actualDst": format_hostport(*actual),
        }

    def relayed(self, sent: int, answered: int, error: Exception | None) -> None:
        """Both ends are done."""
        if error is None:
            series = self._series
            journal = self.context.journal
            if (
                series is not None
                and not self.finished
                and journal.terse
                and journal.levels.access <= logging.INFO
            ):
                self.finished = True
                self._ended_well(series, sent, answered)
                return
        said, flag = "", Flag.NONE
        if error is None:
            pass
        elif isinstance(error, Closed):
            said, flag = str(error), error.flag
        elif not is_ordinary_end(error):
            said, flag = describe(error)
        self.finish(said, flag, sent, answered)

    def _record(self, error: str, flag: Flag, requested: int, responded: int) -> AccessRecord:
        outbound = self.direction is Direction.OUTBOUND
        flow = self._flow
        if flow is None:
            source, destination = self._peer(self.source), self._peer(self._destination)
        else:
            traffic = flow.traffic
            source = flow.source or self._peer(self.source, traffic.source, traffic.source_identity)
            if not outbound:
                flow.source = source  # Those that share the flow came by one tunnel.
            if flow.destination is None:
                flow.destination = self._peer(flow.address, traffic.destination, traffic.destination_identity)
            destination = flow.destination
        return AccessRecord(
            ended=self.context.journal.now(),
            direction=self.direction,
            source=source,
            destination=destination,
            hbone_address=flow.hbone_address if flow else "",
            service=flow.traffic.service if flow else "",
            bytes_sent=requested if outbound else responded,
            bytes_received=responded if outbound else requested,
            duration=monotonic() - self._started,
            error=error,
            flag=flag,
            early=flow is None,
            trace=self.traceparent[3:35],
        )

    def _peer(
        self, address: Address, workload: Workload | None = None, identity: SpiffeId | None = None
    ) -> Peer:
        text = format_hostport(*address)
        if workload is None:
            return Peer(address=text, identity=identity)
        return Peer(
            address=text,
            workload=workload.name,
            namespace=workload.namespace,
            identity=identity,
            cluster=self.context.cluster,
        )
