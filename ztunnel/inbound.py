"""Port 15008: HBONE connections to the pod, and the CONNECTs inside them.

In this order, and nothing of it may move: handshake (who is it), ``admit`` (is the target ours),
``enforce`` (may it), dial the application, and only then 200.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from ambient.engine.channel import SocketChannel
from ambient.engine.failure import describe, fault, rejection, status_of
from ambient.engine.netns import plain_address
from ambient.engine.overload import OVERLOADED
from ambient.engine.tls import TlsChannel, accept_tls, prepare_hbone
from ambient.engine.tunnel import Headers, TunnelConnection, TunnelRequest
from ambient.errors import Denied, Unavailable
from ambient.model.identity import SpiffeId
from ambient.model.policy import Connection, enforce
from ambient.model.record import Direction, Flag
from ambient.model.route import Admitted, Rejected, admit
from ambient.model.workload import HBONE_PORT, Workload
from ambient.own_code import own_code
from ambient.wire.baggage import parse_forwarded, traceparent_in
from ztunnel.connection import Closed, ProxiedConnection
from ztunnel.context import Context
from ztunnel.flow import MAX_NAME_BYTES, Arrival, Flow, Remembered
from ztunnel.metrics import Traffic
from ztunnel.network import Address, Cancellable


class InboundHandshake(ProxiedConnection):
    """An accepted connection until it has shown a certificate; it leaves a record only if it fails.

    Args:
        on_done: Called once, with the verified channel, or with None after a failure.
    """

    __slots__ = ("_on_done", "_socket")

    direction = Direction.INBOUND

    def __init__(
        self,
        context: Context,
        sock: socket.socket,
        on_done: Callable[[InboundHandshake, TlsChannel | None], None],
    ) -> None:
        super().__init__(context, plain_address(sock.getpeername()), plain_address(sock.getsockname()))
        self._on_done = on_done
        self._socket = sock

    def begin(self) -> None:
        """Shake hands with the pod's current certificate."""
        try:
            tls = self.context.svids.context_nowait(self.context.identity, server=True)
        except Unavailable as exc:
            self._socket.close()
            self._done(exc)
            return
        prepare_hbone(self.context.reactor, self._socket)
        accept_tls(self.context.reactor, self._socket, tls, self._done)

    def refuse(self, reason: str) -> None:
        """Close it unheard."""
        self._socket.close()
        self.finish(reason, Flag.CONNECT)

    def give_up(self, reason: Closed) -> None:
        """Nothing to do: the handshake has its own deadline, and what it gives then is aborted."""

    def _done(self, result: TlsChannel | Exception) -> None:
        channel = None
        if isinstance(result, Exception):
            self.finish(*describe(result))
        elif self.finished:
            result.abort()
        else:
            channel = result
        self._on_done(self, channel)


@own_code
class InboundStream(ProxiedConnection):
    """One CONNECT."""

    __slots__ = ("_answer", "_dialling", "_request", "_tunnel")

    direction = Direction.INBOUND

    def __init__(self, context: Context, tunnel: InboundTunnel, request: TunnelRequest) -> None:
        super().__init__(context, tunnel.source, (tunnel.pod_ip, HBONE_PORT))
        self._tunnel = tunnel
        self._request = request
        self._dialling: Cancellable | None = None
        self._answer: Headers = ()

    def begin(self) -> None:
        """Ask whether the target is ours."""
        context = self.context
        headroom = context.reactor.headroom
        if headroom.memory and headroom.tight:
            headroom.refused("memory")
            self._refuse(503, OVERLOADED, Flag.CONNECT)
            return
        me = context.mesh.workload(context.uid)
        if me is None:
            self._refuse(503, "unknown workload", Flag.CONNECT)
            return
        if context.journal.json:
            self.traceparent = traceparent_in(self._request.headers)
        self._request.on_cancelled(self._cancelled)
        arrival = self._tunnel.arrival(me, self._request)
        match arrival.admission:
            case Rejected(status, reason):
                self._refuse(status, reason, Flag.CONNECT)
            case Admitted() as target:
                self._admitted(target, arrival)

    def give_up(self, reason: Closed) -> None:
        """Answer it, so that the client need not wait for a deadline."""
        if self._dialling is not None:
            self._dialling.cancel()
        self._request.refuse(403 if reason.flag is Flag.DENY else 503, str(reason))

    def _admitted(self, target: Admitted, arrival: Arrival) -> None:
        assert arrival.flow is not None
        self.attribute_to(arrival.flow)
        self.facts = arrival.facts
        self._answer = arrival.answer
        if arrival.denial:
            self._refuse(403, arrival.denial, Flag.DENY)
            return
        self._dialling = self.context.network.dial(
            (target.ip, target.port), self._dialled, source=self._tunnel.source[0], live=self.context.open
        )

    def _dialled(self, result: socket.socket | OSError) -> None:
        self._dialling = None
        if isinstance(result, OSError):
            reason, flag = describe(result)
            self._refuse(status_of(result), reason, flag)
            return
        application = SocketChannel(self.context.reactor, result)
        stream = self._request.accept(self._answer)
        # What was asked is known by now, and would live as long as the connection.
        stream.headers = self._request.headers = ()
        self.join(stream, application)

    def _cancelled(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()
        self.finish("closed by the source before the answer", Flag.CONNECT)

    def _refuse(self, status: int, reason: str, flag: Flag) -> None:
        self._request.refuse(status)
        self.finish(reason, flag)


class InboundFault(ProxiedConnection):
    """What a peer did wrong outside any CONNECT that was served: a record, and nothing else."""

    direction = Direction.INBOUND

    def __init__(self, context: Context, tunnel: InboundTunnel) -> None:
        super().__init__(context, tunnel.source, (tunnel.pod_ip, HBONE_PORT))

    def give_up(self, reason: Closed) -> None:
        """Nothing is held."""


class InboundTunnel:
    """An HBONE connection to the pod after its handshake.

    Attributes:
        identity: Who is at the other end, proven.
        source: Its address and port.
        pod_ip: The pod's address that it came to.
        connection: What it is, one floor below.
    """

    def __init__(
        self,
        context: Context,
        channel: TlsChannel,
        source: Address,
        on_closed: Callable[[InboundTunnel], None],
    ) -> None:
        self.identity: SpiffeId = channel.peer_identity
        self.source = source
        self.pod_ip = channel.local_address[0]
        self._context = context
        self._on_closed = on_closed
        self._arrivals: Remembered[tuple[str, str], Arrival] = Remembered(context.mesh)
        self.connection = TunnelConnection(
            context.reactor,
            channel,
            on_request=self._requested,
            on_closed=self._closed,
            on_rejected=self._rejected,
        )

    def goaway(self) -> None:
        """Let the streams finish and take no more."""
        self.connection.goaway()

    def close(self) -> None:
        """End it now."""
        self.connection.close()

    def source_workload(self) -> Workload | None:
        """The workload at the peer's address, if that is who the certificate says."""
        me = self._context.me
        found = self._context.mesh.workload_by_address(self.source[0], me.node if me is not None else "")
        return found if found is not None and found.identity == self.identity else None

    def arrival(self, me: Workload, request: TunnelRequest) -> Arrival:
        """What becomes of *request*; asked of policy once for each target, until the mesh changes."""
        forwarded = ""
        for name, value in request.headers:
            if name == "forwarded":
                forwarded = value
                break
        known = request.authority, forwarded.partition(";")[2]
        found = self._arrivals.get(known)
        if found is None:
            found = self._judge(me, request.authority, forwarded)
            if len(known[0]) + len(known[1]) <= MAX_NAME_BYTES:
                self._arrivals.keep(known, found)
        return found

    def _judge(self, me: Workload, authority: str, forwarded: str) -> Arrival:
        context = self._context
        target = admit(context.mesh, me, self.pod_ip, authority, self.identity)
        if isinstance(target, Rejected):
            return Arrival(target)
        service = target.service or self._service_meant(me, forwarded)
        traffic = Traffic(
            reporter=Direction.INBOUND.reporter,
            source=self.source_workload(),
            destination=me,
            service=service.partition("/")[2] or service,
            source_identity=self.identity,
            destination_identity=context.identity,
        )
        flow = Flow(traffic, (self.pod_ip, HBONE_PORT), authority)
        arrival = Arrival(target, flow, Connection(self.identity, self.source[0], target.ip, target.port))
        assert arrival.facts is not None
        if context.response_baggage:
            arrival.answer = (("baggage", context.baggage(me)),)
        try:
            enforce(context.mesh.policies_for(me), arrival.facts)
        except Denied as exc:
            arrival.denial = exc.reason
        return arrival

    def _service_meant(self, me: Workload, forwarded: str) -> str:
        # Only a label in records and metrics, and only if there is such a service: nothing rests on it.
        found = parse_forwarded(forwarded)
        if not found or not found[1]:
            return ""
        service = self._context.mesh.service_by_hostname(found[1], me.namespace)
        return service.key if service else ""

    def _requested(self, request: TunnelRequest) -> None:
        InboundStream(self._context, self, request).begin()

    def _rejected(self, status: int, reason: str) -> None:
        InboundFault(self._context, self).finish(rejection(status, reason), Flag.CONNECT)

    def _closed(self, exc: Exception | None) -> None:
        if (found := fault(exc)) is not None:
            InboundFault(self._context, self).finish(*found)
        self._on_closed(self)
