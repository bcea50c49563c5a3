"""The waypoint: an HBONE server whose tunnels carry requests, which it routes and sends on.

ztunnel --HBONE CONNECT vip:port--> HTTP by host, or bytes --HBONE--> the destination's ztunnel
"""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from ambient.engine.door import GOAWAY_DELAY, Door
from ambient.engine.failure import describe, fault, rejection
from ambient.engine.http_forward import Answer
from ambient.engine.listener import Listener
from ambient.engine.netns import plain_address
from ambient.engine.tls import TlsChannel, accept_tls, prepare_hbone
from ambient.engine.tunnel import TunnelConnection, TunnelRequest
from ambient.errors import ConfigError, Unavailable
from ambient.model.address import format_hostport, parse_hostport
from ambient.model.identity import SpiffeId
from ambient.model.record import AccessRecord, Direction, Flag
from ambient.model.route import Admission, Admitted, Refuse, Rejected, Route, admit, route_request
from ambient.model.workload import HBONE_PORT, Workload
from ambient.wire.baggage import traceparent_in
from ambient.wire.http1_heads import RequestHead
from waypoint.carried import Carried, OpenConnections
from waypoint.client import Client, peer_of, speaks_http
from waypoint.context import Address, Context
from waypoint.requests import HostRoutes, HttpProxy
from waypoint.served import Served
from waypoint.upstreams import Upstreams

# A connection's peer, and what it came to.
Ends: TypeAlias = tuple[Address, Address]


class Gateway:
    """Serves what names the waypoint of *context* as its waypoint."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.upstreams = Upstreams(context)
        self.served = Served(context.mesh, context.uid, context.reactor.now)
        self._routes = HostRoutes(context)
        self.http = HttpProxy(context, self.upstreams, self._route)
        self.open = OpenConnections()
        self._tunnels: set[TunnelConnection] = set()
        self._draining = False
        self._door = Door(context.reactor)
        self._listeners: list[Listener] = []
        self.handshakes = 0

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: the port is taken.
        """
        sock = self._context.network.listen(HBONE_PORT)
        self._listeners = [Listener(self._context.reactor, sock, self.accepted)]

    def mesh_changed(self) -> None:
        """Let new routes take hold."""
        self.served.mesh_changed()
        self.upstreams.mesh_changed()

    @property
    def servers(self) -> tuple[HttpProxy, ...]:
        """Everything that has HTTP clients."""
        return (self.http,)

    def drain(self) -> None:
        """Take what was already knocking, then no more; exchanges under way end by themselves."""
        self._draining = True
        for listener in self._listeners:
            listener.accept_pending()
            listener.close()
        self.http.server.drain()
        self._context.reactor.call_later(GOAWAY_DELAY, self._say_goodbye)

    def abort(self) -> None:
        """End everything now."""
        self.http.server.abort()
        self.open.abort()
        for tunnel in list(self._tunnels):
            tunnel.close()
        self.upstreams.abort()

    def _say_goodbye(self) -> None:
        for tunnel in list(self._tunnels):
            tunnel.goaway()

    # Tunnels -------------------------------------------------------------------------------

    def accepted(self, sock: socket.socket) -> None:
        """A source's ztunnel (or another proxy) connected."""
        try:
            ends = plain_address(sock.getpeername()), plain_address(sock.getsockname())
        except OSError:
            sock.close()  # Reset while it waited in the queue: nobody is there to be recorded.
            return
        me = self.served.me
        try:
            if me is None:
                raise Unavailable("our own workload is not known yet")
            tls = self._context.svids.context_nowait(me.identity, server=True)
            self._door.knock()
        except Unavailable as exc:
            sock.close()
            self._refused(ends, None, str(exc), Flag.CONNECT)
            return
        self.handshakes += 1
        prepare_hbone(self._context.reactor, sock)
        accept_tls(self._context.reactor, sock, tls, partial(self._shaken, ends))

    def _shaken(self, ends: Ends, channel: TlsChannel | Exception) -> None:
        self._door.shaken()
        if isinstance(channel, Exception):
            self._refused(ends, None, *describe(channel))  # The socket is closed.
            return
        identity = channel.peer_identity
        try:
            self._door.enter(identity)
        except Unavailable as exc:
            channel.abort()
            self._refused(ends, identity, str(exc), Flag.CONNECT)
            return
        peer, local = channel.peer_address, channel.local_address
        tunnel = TunnelConnection(
            self._context.reactor,
            channel,
            on_request=lambda request: self._requested(request, peer, local[0]),
            on_closed=lambda exc: self._closed(tunnel, ends, exc),
            on_rejected=lambda status, reason: self._refused(
                ends, identity, rejection(status, reason), Flag.CONNECT
            ),
        )
        self._tunnels.add(tunnel)
        if self._draining:
            # It knocked before the door was closed: its first request is still welcome.
            self._context.reactor.call_later(GOAWAY_DELAY, tunnel.goaway)

    def _closed(self, tunnel: TunnelConnection, ends: Ends, exc: Exception | None) -> None:
        self._tunnels.discard(tunnel)
        self._door.leave(tunnel.peer_identity)
        if (found := fault(exc)) is not None:
            self._refused(ends, tunnel.peer_identity, *found)

    def _refused(
        self, ends: Ends, identity: SpiffeId | None, reason: str, flag: Flag, authority: str = ""
    ) -> None:
        """The one record of what was turned away before anybody knew where it was to go."""
        (peer, local), context, me = ends, self._context, self.served.me
        source = context.mesh.workload_by_address(peer[0])
        known = source if source is not None and source.identity == identity else None
        context.journal.connection(
            AccessRecord(
                ended=context.journal.now(),
                direction=Direction.INBOUND,
                source=peer_of(format_hostport(*peer), known, identity),
                destination=peer_of(format_hostport(*local), me, me.identity if me and identity else None),
                hbone_address=authority,
                error=reason,
                flag=flag,
                early=True,
            )
        )

    def _requested(self, request: TunnelRequest, peer: tuple[str, int], local_ip: str) -> None:
        context, me = self._context, self.served.me
        identity = request.connection.peer_identity
        ends = peer, (local_ip, HBONE_PORT)
        if me is None:
            request.refuse(503, "our own workload is not known yet\n")
            self._refused(ends, identity, "our own workload is not known yet", Flag.CONNECT)
            return
        admission = self._admit(me, local_ip, request.authority, identity)
        if isinstance(admission, Rejected):
            request.refuse(admission.status, admission.reason + "\n")
            self._refused(ends, identity, admission.reason, Flag.CONNECT)
            return
        source = context.mesh.workload_by_address(peer[0])
        client = Client(
            "waypoint",
            admission.ip,
            admission.port,
            peer,
            source,
            identity,
            traceparent=traceparent_in(request.headers),
        )
        if speaks_http(context.mesh, me.namespace, admission.ip, admission.port):
            self.http.server.serve(request.accept(), client)
        else:
            self._carry(request, client, me)

    def _admit(self, me: Workload, local_ip: str, authority: str, source: SpiffeId) -> Admission:
        admission = admit(self._context.mesh, me, local_ip, authority, source)
        if isinstance(admission, Admitted):
            if admission.ip == local_ip:
                return Rejected(400, "a waypoint serves others, not itself")
            return admission
        try:
            ip, port = parse_hostport(authority)
        except ConfigError:
            return admission
        late = source.trust_domain == me.trust_domain and self.served.lately(ip)
        return Admitted(ip, port) if late else admission

    def _carry(self, request: TunnelRequest, client: Client, me: Workload) -> None:
        route = self._to_endpoint(me, client, b"")
        if isinstance(route, Refuse):
            request.refuse(503, route.reason + "\n")
            ends = client.peer, (request.connection.local_address[0], HBONE_PORT)
            self._refused(ends, client.identity, route.reason, route.flag, request.authority)
            return
        target = self.upstreams.target(route)
        refuse = partial(_refuse, request)
        Carried(self._context, self.open, client, target, request.accept, refuse).begin(self.upstreams)

    # Routing -------------------------------------------------------------------------------

    def _route(self, client: Client, head: RequestHead) -> Route | Answer:
        me = self.served.me
        if me is None:
            return Answer(503, "our own workload is not known yet", "UH")
        return self._to_endpoint(me, client, head.host)

    def _to_endpoint(self, me: Workload, client: Client, host: bytes) -> Route:
        """By host among what we serve; what the client was admitted to stays served until it leaves."""
        if self.served.now(client.ip):
            return self._routes.route(me, host, client.ip, client.port)
        anybody, chance = replace(me, waypoint_for=""), self._context.chance()
        return route_request(self._context.mesh, anybody, client.ip, client.port, "", chance)


def _refuse(request: TunnelRequest, exc: Exception) -> None:
    request.refuse(504 if isinstance(exc, TimeoutError) else 503, f"{exc}\n")
