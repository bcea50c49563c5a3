"""Port 15001: a connection that the pod's application opened, on its way out.

The decision is ``model.route``; here it is carried out: by a tunnel, in plaintext, or not at all.
"""

from __future__ import annotations

import random
import socket

from ambient.engine.channel import SocketChannel
from ambient.engine.failure import describe, may_go_elsewhere
from ambient.engine.pool import TunnelPool
from ambient.engine.tunnel import TunnelStream
from ambient.model.address import format_hostport
from ambient.model.pool_plan import PoolKey
from ambient.model.record import Direction, Flag
from ambient.model.route import Pass, Refuse, Route, Tunnel, route
from ambient.model.workload import Workload
from ambient.own_code import own_code
from ambient.wire.baggage import format_forwarded, traceparent_of
from ambient.wire.hbone_headers import RequestEncoder
from ztunnel.connection import Closed, ProxiedConnection
from ztunnel.context import Context
from ztunnel.flow import Flow
from ztunnel.metrics import Traffic
from ztunnel.network import Address, Cancellable

# The greatest value below 1: ``route`` chooses the last of several endpoints by it.
LAST_CHANCE = 1.0 - 2.0**-53

UNKNOWN_WORKLOAD = "failed to fetch information about local workload"


@own_code
class OutboundConnection(ProxiedConnection):
    """From the *application* at *source*, which wants to go to *target*, to wherever ``route`` says.

    If nobody can have seen the request and the mesh has changed meanwhile (a destination that is being
    un-enrolled), the connection is routed once more: the application need not know.
    """

    __slots__ = ("_application", "_chance", "_dialling", "_pool", "_route")

    direction = Direction.OUTBOUND

    def __init__(
        self,
        context: Context,
        pool: TunnelPool,
        application: SocketChannel,
        source: Address,
        target: Address,
    ) -> None:
        super().__init__(context, source, target)
        self._application = application
        self._pool = pool
        self._chance: float | None = None
        self._route: Route | None = None
        self._dialling: Cancellable | None = None

    def begin(self) -> None:
        """Route it."""
        usual = self.context.usual.get(self._destination)
        if usual is not None:
            self._route, flow = usual
            self._open(self._route, flow)
            return
        me = self.context.me
        if me is None:
            self._refuse(UNKNOWN_WORKLOAD, Flag.CONNECT)
        else:
            self._go(me, self._decide(me))

    def give_up(self, reason: Closed) -> None:
        """Reset the application's side; a tunnel that opens later finds nobody and is closed."""
        if self._dialling is not None:
            self._dialling.cancel()
        self._application.abort()

    def dump(self) -> dict[str, str]:
        """With the address that the application asked for: a service's, perhaps."""
        return super().dump() | {"originalDst": format_hostport(*self._destination)}

    def _decide(self, me: Workload) -> Route:
        known = self.context.routes.get(self._destination)
        if known is not None:
            return known
        mesh = self.context.mesh
        first = route(mesh, me, *self._destination, 0.0)
        if first == route(mesh, me, *self._destination, LAST_CHANCE):
            # Nothing is left to chance: there is one endpoint, or none.
            self.context.routes.keep(self._destination, first)
            return first
        if self._chance is None:
            self._chance = self.context.chance()
        return route(mesh, me, *self._destination, self._chance)

    def _go(self, me: Workload, chosen: Route) -> None:
        self._route = chosen
        match chosen:
            case Refuse(reason, flag):
                self._refuse(reason, flag)
            case Pass():
                self._pass(me, chosen)
            case Tunnel():
                self._tunnel(me, chosen)

    def _pass(self, me: Workload, chosen: Pass) -> None:
        address = (chosen.ip, chosen.port)
        destination = self.context.mesh.workload(chosen.workload_uid)
        self.attribute(source=me, destination=destination, address=address, service=chosen.service)
        self._dialling = self.context.network.dial(address, self._dialled)

    def _tunnel(self, me: Workload, chosen: Tunnel) -> None:
        flow = self._flow_of(me, chosen)
        if flow.encoder is None:
            flow.encoder = request_encoder(chosen.authority, self.context.baggage(me))
        if self._chance is None:
            self.context.usual.keep(self._destination, (chosen, flow))
        self._open(chosen, flow)

    def _open(self, chosen: Tunnel, flow: Flow) -> None:
        self.attribute_to(flow)
        key, encoder = flow.pool_key, flow.encoder
        assert key is not None
        assert encoder is not None
        traceparent = traceparent_of(random.getrandbits(192))
        if self.context.journal.json:
            self.traceparent = traceparent
        forwarded = format_forwarded(format_hostport(*self.source), flow.traffic.service)
        self._pool.open(key, chosen.authority, encoder.encode(forwarded, traceparent), self._opened)

    def _flow_of(self, me: Workload, chosen: Tunnel) -> Flow:
        known = chosen.workload_uid, chosen.ip, chosen.authority, chosen.service
        flow = self.context.flows.get(known)
        if flow is None:
            (identity,) = chosen.identities if len(chosen.identities) == 1 else (None,)
            traffic = Traffic(
                reporter=self.direction.reporter,
                source=me,
                destination=self.context.mesh.workload(chosen.workload_uid),
                service=chosen.service.partition("/")[2],
                source_identity=self.context.identity,
                destination_identity=identity,
            )
            flow = Flow(traffic, (chosen.ip, chosen.port), chosen.authority, pool_key(self.context, chosen))
            self.context.flows.keep(known, flow)
        return flow

    def _dialled(self, result: socket.socket | OSError) -> None:
        self._dialling = None
        if isinstance(result, OSError):
            self._failed(result, hbone=False)
        else:
            self.join(self._application, SocketChannel(self.context.reactor, result))

    def _opened(self, result: TunnelStream | Exception) -> None:
        if self.finished:
            if not isinstance(result, Exception):
                result.abort()
        elif isinstance(result, Exception):
            self._failed(result, hbone=True)
        else:
            result.headers = ()  # Nobody reads them, and they would live as long as the connection.
            self.join(self._application, result)

    def _failed(self, exc: Exception, *, hbone: bool) -> None:
        me = self.context.me
        if me is not None and may_go_elsewhere(exc):
            again = self._decide(me)
            # The same chance gives the same route, unless the mesh has changed: so this ends.
            if again != self._route:
                self._go(me, again)
                return
        self._refuse(*describe(exc, hbone=hbone))

    def _refuse(self, reason: str, flag: Flag) -> None:
        # A reset, not an end of file: a client must not take the refusal for an empty answer.
        self._application.abort()
        self.finish(reason, flag)


def pool_key(context: Context, chosen: Tunnel) -> PoolKey:
    """Which connections may carry a stream for *chosen*."""
    return PoolKey(
        source_uid=context.uid,
        source_identity=context.identity,
        destination_uid=chosen.workload_uid,
        ip=chosen.ip,
        port=chosen.port,
        identities=chosen.identities,
    )


def request_encoder(authority: str, baggage: str) -> RequestEncoder:
    """Encodes what a CONNECT says: last, what differs between two to the same destination."""
    return RequestEncoder(authority, (("baggage", baggage),), ("forwarded", "traceparent"))
