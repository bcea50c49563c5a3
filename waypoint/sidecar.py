"""The sidecar: one pod's outbound (15001) and inbound (15006) connections.

application --15001--> route by host or address --> endpoint's sidecar (mutual TLS), tunnel, or plaintext
peer --15006--> mutual TLS or plaintext, told apart by the first byte --> policy --> application
"""

from __future__ import annotations

import socket
from functools import partial

from ambient.engine.channel import Channel, SocketChannel
from ambient.engine.listener import Listener
from ambient.engine.tls import TlsChannel, accept_tls
from ambient.errors import Unavailable
from ambient.model.policy import decide
from ambient.model.route import INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, OWN_PORTS, Pass, Refuse, route_request
from ambient.model.workload import Workload
from waypoint.carried import Carried, OpenConnections
from waypoint.client import Client, serves_http, speaks_http
from waypoint.context import ALPN_SIDECAR, Context
from waypoint.first_byte import SILENCE_SECONDS, First, FirstByte
from waypoint.requests import HostRoutes, HttpProxy, to_application
from waypoint.upstreams import Upstreams

# HTTP clients speak first, so silence on an HTTP port means only that nothing was asked yet.
HTTP_PATIENCE_SECONDS = 3600.0


class Sidecar:
    """Serves the pod of *context*."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.upstreams = Upstreams(context)
        self._local = Upstreams(context)  # to our own application: never pooled with the way out
        self.outbound = HttpProxy(context, self.upstreams, HostRoutes(context))
        self.inbound = HttpProxy(context, self._local, to_application(context))
        self.open = OpenConnections()
        self._listeners: list[Listener] = []
        self.handshakes = 0

    def start(self) -> None:
        """Listen.

        Raises:
            OSError: a port is taken.
        """
        network = self._context.network
        for port, accepted in (
            (OUTBOUND_PORT, self.accepted_outbound),
            (INBOUND_PLAINTEXT_PORT, self.accepted_inbound),
        ):
            self._listeners.append(Listener(self._context.reactor, network.listen(port), accepted))

    def mesh_changed(self) -> None:
        """Let new routes take hold."""
        self.upstreams.mesh_changed()

    @property
    def servers(self) -> tuple[HttpProxy, ...]:
        """Everything that has HTTP clients."""
        return (self.outbound, self.inbound)

    def drain(self) -> None:
        """Take what was already knocking, then no more; exchanges under way end by themselves."""
        for listener in self._listeners:
            listener.accept_pending()
            listener.close()
        for proxy in self.servers:
            proxy.server.drain()

    def abort(self) -> None:
        """End everything now."""
        for proxy in self.servers:
            proxy.server.abort()
        self.open.abort()
        self.upstreams.abort()
        self._local.abort()

    # Outbound ------------------------------------------------------------------------------

    def accepted_outbound(self, sock: socket.socket) -> None:
        """The application connected somewhere."""
        context = self._context
        ip, port = context.network.original_destination(sock)
        channel = SocketChannel(context.reactor, sock)
        me = context.me
        if me is None or (port in OWN_PORTS and ip in me.addresses):
            channel.abort()
            return
        client = Client("source", ip, port, channel.peer_address, me, me.identity)
        if speaks_http(context.mesh, me.namespace, ip, port):
            self.outbound.server.serve(channel, client)
            return
        route = route_request(context.mesh, me, ip, port, "", context.chance())
        if isinstance(route, Refuse):
            channel.abort()
            return
        self._carry(client, self.upstreams, route, channel)

    def _carry(self, client: Client, upstreams: Upstreams, route: object, channel: Channel) -> None:
        target = upstreams.target(route)  # type: ignore[arg-type]
        carried = Carried(
            self._context, self.open, client, target, lambda: channel, lambda exc: channel.abort()
        )
        carried.begin(upstreams)

    # Inbound -------------------------------------------------------------------------------

    def accepted_inbound(self, sock: socket.socket) -> None:
        """Somebody connected to the application."""
        context = self._context
        me = context.named
        ip, port = context.network.original_destination(sock)
        if me is None or port in OWN_PORTS:
            sock.close()
            return
        http = serves_http(context.mesh, me, port)
        patience = HTTP_PATIENCE_SECONDS if http else SILENCE_SECONDS
        FirstByte(context.reactor, sock, partial(self._first, sock, ip, port, http), patience)

    def _first(self, sock: socket.socket, ip: str, port: int, http: bool, first: First) -> None:
        context = self._context
        if first is First.CLOSED or context.named is None:
            sock.close()
        elif first is First.TLS:
            self._shake_hands(sock, context.named, partial(self._admit, ip, port, http))
        else:
            self._admit(ip, port, http, SocketChannel(context.reactor, sock))

    def _shake_hands(self, sock: socket.socket, me: Workload, on_done: partial[None]) -> None:
        try:
            tls = self._context.svids.context_nowait(me.identity, server=True, alpn=ALPN_SIDECAR)
        except Unavailable:
            sock.close()
            return
        self.handshakes += 1
        accept_tls(self._context.reactor, sock, tls, on_done)

    def _admit(self, ip: str, port: int, http: bool, channel: Channel | Exception) -> None:
        if isinstance(channel, Exception):
            return  # The handshake failed; the socket is closed.
        mesh = self._context.mesh
        identity = channel.peer_identity if isinstance(channel, TlsChannel) else None
        peer = channel.peer_address
        client = Client("destination", ip, port, peer, mesh.workload_by_address(peer[0]), identity)
        if http:
            self.inbound.server.serve(channel, client)
            return
        me = self._context.named
        if me is None or not decide(mesh.policies_for(me), client.facts).allowed:
            channel.abort()
            return
        self._carry(client, self._local, Pass(ip, port), channel)
