"""Upstreams: where a routed request or connection goes, and how it is dialled.

A ``Target`` stands for one endpoint reached in one way. There is one object per endpoint for as long as
the mesh says the same about it, so that the pool can key on the object itself, and counters hang on it.
"""

from __future__ import annotations

import random
import socket
from enum import Enum
from functools import partial

from ambient.engine.channel import SocketChannel
from ambient.engine.http_client import HttpPool, OnChannel
from ambient.engine.pool import OnConnected, TunnelPool
from ambient.engine.tls import TlsChannel, connect_tls
from ambient.engine.tunnel import Headers, TunnelStream
from ambient.errors import Unavailable
from ambient.model.address import format_hostport
from ambient.model.identity import SpiffeId
from ambient.model.pool_plan import PoolKey
from ambient.model.route import Pass, Tunnel
from ambient.model.workload import Protocol, Workload
from ambient.wire.baggage import baggage_of, format_baggage, format_traceparent, next_traceparent
from waypoint.context import ALPN_SIDECAR, Context
from waypoint.metrics import Series


class Kind(Enum):
    """How an endpoint is reached."""

    PLAIN = "plain"
    MTLS = "mtls"  # a sidecar: mutual TLS on the application's own port
    HBONE = "hbone"


class Target:
    """One endpoint, reached in one way; equal only to itself.

    Attributes:
        authority: ``ip:port`` of the endpoint.
        identities: Whom the peer's certificate may name; empty without TLS.
        hostname: Of the service that was addressed, or "".
        text: Its fields of an access line, made once.
        series: Counters by (source, status, flag); filled by the requests' records.
    """

    __slots__ = ("authority", "hostname", "identities", "kind", "route", "series", "text", "workload")

    def __init__(self, kind: Kind, route: Pass | Tunnel, workload: Workload | None, hostname: str) -> None:
        self.kind = kind
        self.route = route
        self.workload = workload
        self.hostname = hostname
        self.authority = (
            route.authority if isinstance(route, Tunnel) else format_hostport(route.ip, route.port)
        )
        self.identities = _identities(kind, route, workload)
        self.series: dict[tuple[object, ...], Series] = {}
        self.text = f"dst.addr={self.authority}"
        if hostname:
            self.text += f' dst.service="{hostname}"'
        if workload is not None:
            self.text += f' dst.workload="{workload.name}" dst.namespace="{workload.namespace}"'
        for identity in self.identities:
            self.text += f' dst.identity="{identity}"'

    @property
    def identity(self) -> SpiffeId | None:
        """Whom we expect there, for records."""
        return next(iter(self.identities), None)


class Upstreams:
    """All targets of one proxy, their HTTP connections and their tunnels."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._targets: dict[Pass | Tunnel, Target] = {}
        self._tunnels = TunnelPool(context.reactor, self._dial_tunnel)
        self.http = HttpPool(context.reactor, self.dial)

    def target(self, route: Pass | Tunnel) -> Target:
        """The target that *route* means now."""
        found = self._targets.get(route)
        if found is None:
            found = self._targets[route] = self._make(route)
        return found

    def dial(self, target: Target, on_channel: OnChannel, traceparent: str = "") -> None:
        """Open a byte stream to *target*; *on_channel* gets it unstarted, or the reason why not.

        Args:
            traceparent: Of the one connection that it is for, to be continued; "" for a stream of many.
        """
        route = target.route
        if isinstance(route, Tunnel):
            self._open_stream(route, on_channel, traceparent)
            return
        done = self._shake_hands if target.kind is Kind.MTLS else self._plain
        self._context.network.dial((route.ip, route.port), partial(done, target, on_channel))

    def mesh_changed(self) -> None:
        """Forget targets that mean something else now; their idle connections are closed."""
        stale = {
            target
            for route, target in self._targets.items()
            if target.workload is not self._workload(route) or target.kind is not self._kind(route)
        }
        if stale:
            self._targets = {route: each for route, each in self._targets.items() if each not in stale}
            self.http.close_where(stale.__contains__)
        mesh = self._context.mesh
        self._tunnels.close_where(lambda key: mesh.workload(key.destination_uid) is None)

    def close(self) -> None:
        """Use no connection again; exchanges under way end first."""
        self.http.close()
        self._tunnels.close_where(lambda key: True)

    def abort(self) -> None:
        """End every tunnel now."""
        self.http.close()
        self._tunnels.close()

    def handshakes(self) -> int:
        """TLS handshakes made towards upstreams."""
        return self._tunnels.statistics().handshakes

    # Inside --------------------------------------------------------------------------------

    def _workload(self, route: Pass | Tunnel) -> Workload | None:
        return self._context.mesh.workload(route.workload_uid) if route.workload_uid else None

    def _kind(self, route: Pass | Tunnel) -> Kind:
        if isinstance(route, Tunnel):
            return Kind.HBONE
        workload = self._workload(route)
        is_sidecar = workload is not None and workload.protocol is Protocol.ISTIO_MTLS
        return Kind.MTLS if is_sidecar else Kind.PLAIN

    def _make(self, route: Pass | Tunnel) -> Target:
        service = self._context.mesh.service(route.service)
        return Target(
            self._kind(route), route, self._workload(route), service.hostname if service is not None else ""
        )

    def _plain(self, target: Target, on_channel: OnChannel, sock: socket.socket | OSError) -> None:
        on_channel(sock if isinstance(sock, OSError) else SocketChannel(self._context.reactor, sock))

    def _shake_hands(self, target: Target, on_channel: OnChannel, sock: socket.socket | OSError) -> None:
        if isinstance(sock, OSError):
            on_channel(sock)
            return
        try:
            tls = self._context.svids.context_nowait(self._identity(), server=False, alpn=ALPN_SIDECAR)
        except Unavailable as exc:
            sock.close()
            on_channel(exc)
            return
        connect_tls(self._context.reactor, sock, tls, target.identities, on_channel)

    def _identity(self) -> SpiffeId:
        me = self._context.me
        if me is None:
            raise Unavailable("our own workload is not known yet")
        return me.identity

    def _open_stream(self, route: Tunnel, on_channel: OnChannel, traceparent: str) -> None:
        me = self._context.me
        if me is None:
            on_channel(Unavailable("our own workload is not known yet"))
            return
        key = PoolKey(me.uid, me.identity, route.workload_uid, route.ip, route.port, route.identities)

        def opened(stream: TunnelStream | Exception) -> None:
            on_channel(stream)

        self._tunnels.open(key, route.authority, self._headers(me, traceparent), opened)

    def _headers(self, me: Workload, traceparent: str) -> Headers:
        span, trace = random.getrandbits(64), random.getrandbits(128)
        return (
            ("baggage", format_baggage(baggage_of(me, self._context.cluster))),
            (
                "traceparent",
                next_traceparent(traceparent, span) if traceparent else format_traceparent(trace, span),
            ),
        )

    def _dial_tunnel(self, key: PoolKey, on_connected: OnConnected) -> None:
        def dialled(sock: socket.socket | OSError) -> None:
            if isinstance(sock, OSError):
                on_connected(sock)
                return
            try:
                tls = self._context.svids.context_nowait(key.source_identity, server=False)
            except Unavailable as exc:
                sock.close()
                on_connected(exc)
                return
            connect_tls(self._context.reactor, sock, tls, key.identities, shaken)

        def shaken(channel: TlsChannel | Exception) -> None:
            on_connected(channel)

        self._context.network.dial((key.ip, key.port), dialled)


def _identities(kind: Kind, route: Pass | Tunnel, workload: Workload | None) -> frozenset[SpiffeId]:
    if isinstance(route, Tunnel):
        return route.identities
    if kind is Kind.MTLS and workload is not None:
        return frozenset((workload.identity,))
    return frozenset()
