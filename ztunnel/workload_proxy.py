"""The part of ztunnel that serves one workload: three listeners, a pool, and what they opened.

It knows one workload and no node. Its life: ``start`` (all listeners or none), ``drain`` or ``retire`` (no
new work, the old goes on), and at the end of the last connection ``on_drained``; or ``abort`` at any time.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from types import MappingProxyType

import trio

from ambient.engine.channel import SocketChannel
from ambient.engine.door import GOAWAY_DELAY, Door
from ambient.engine.listener import Listener
from ambient.engine.netns import plain_address
from ambient.engine.pool import Dialler, OnConnected, TunnelPool
from ambient.engine.tls import TlsChannel, connect_tls, prepare_hbone
from ambient.engine.tunnel import TunnelConnection
from ambient.errors import Unavailable
from ambient.model.policy import Policy, decide
from ambient.model.pool_plan import PoolKey
from ambient.model.record import Flag
from ambient.model.route import INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT, SOCKS_PORT
from ambient.model.workload import HBONE_PORT
from ztunnel.connection import DRAINED, POLICY_CHANGED
from ztunnel.context import Context
from ztunnel.inbound import InboundHandshake, InboundTunnel
from ztunnel.name_server import DOORS, NAMES_PORT, NameServer
from ztunnel.network import Address
from ztunnel.outbound import OutboundConnection
from ztunnel.passthrough import PassthroughConnection
from ztunnel.socks5 import SocksDoor

# To these come applications, which are not to take our end for theirs (``reset_unless_finished``).
CAPTURED_PORTS = (OUTBOUND_PORT, INBOUND_PLAINTEXT_PORT)

# The rules are gone, but a handshake with a listener may be half done: closing now would reset it. It takes
# one round trip; measured: emptying the queue after 20 to 50 ms loses nothing.
KNOCKING_SECONDS = 0.02
# That was for round trips of up to 20 ms. Whoever is further away, or whose last packet was lost, is waited
# for, if the kernel knows of any: the kernel says its part again after 1 s (RFC 6298), and once is enough.
LAST_KNOCK_SECONDS = 1.5
# How exactly their end is noticed. Picked, not measured.
KNOCK_CHECK_SECONDS = 0.05

# Open connections that are asked about in one step, after policy has changed. Picked: some 5 us each.
RECHECK_STEP = 50


@dataclass(frozen=True, slots=True)
class ProxyStatistics:
    """One workload's proxy, now; handshakes since its start."""

    connections: int
    inbound_tunnels: int
    outbound_tunnels: int
    inbound_handshakes: int
    outbound_handshakes: int


class WorkloadProxy:
    """Serves the workload of *context*."""

    def __init__(self, context: Context, on_drained: Callable[[WorkloadProxy], None]) -> None:
        self.context = context
        self.draining = False
        self.handshakes = 0
        self._doors_open = True
        self._on_drained: Callable[[WorkloadProxy], None] | None = on_drained
        self._listeners: dict[int, Listener] = {}
        self._tunnels: set[InboundTunnel] = set()
        self._door = Door(context.reactor)
        self._policies: tuple[Policy, ...] | None = None
        self._pool = TunnelPool(context.reactor, hbone_dialler(context))
        self._names = NameServer(context, context.names) if context.names is not None else None
        self._socks = SocksDoor(context, self._pool)
        context.open.on_empty = self._maybe_drained

    def start(self, given: Mapping[int, socket.socket] = MappingProxyType({})) -> None:
        """Open every listener.

        Args:
            given: By port, listeners that an earlier process left; ours to close.

        Raises:
            OSError: one of the ports is taken, or the namespace is gone; then none is open.
        """
        left = [given[door] for door in DOORS if door in given]
        opened: dict[int, tuple[socket.socket, Callable[[socket.socket], None]]] = {}
        try:
            for port, accepted in (
                (OUTBOUND_PORT, self._accepted_outbound),
                (INBOUND_PLAINTEXT_PORT, self._accepted_plaintext),
                (HBONE_PORT, self._accepted_hbone),
            ):
                opened[port] = (given.get(port) or self.context.network.listen(port), accepted)
            if self.context.socks:
                port = SOCKS_PORT
                sock = given.get(port) or self.context.network.listen_locally(port)
                opened[port] = (sock, self._socks.accepted)
            if self._names is not None:
                port = NAMES_PORT
                self._names.start(left)
            else:
                for sock in left:
                    sock.close()
        except OSError as exc:
            for sock in (*given.values(), *(sock for sock, _ in opened.values())):
                sock.close()
            raise OSError(exc.errno, f"cannot listen on {port} in the pod: {exc.strerror or exc}") from exc
        self._listeners = {
            port: Listener(self.context.reactor, sock, accepted, resets=port in CAPTURED_PORTS)
            for port, (sock, accepted) in opened.items()
        }

    def listeners(self) -> list[tuple[int, int]]:
        """(port, descriptor) of each open listener; those of the name server under its ``DOORS``."""
        found = [(port, each.fileno()) for port, each in self._listeners.items() if each.fileno() >= 0]
        return [*found, *(self._names.doors() if self._names is not None else ())]

    async def drain(self) -> None:
        """Take what was already knocking, then no more; when this returns the ports are free.

        ``on_drained`` follows when the last connection has ended, never from in here.
        """
        if self.draining:
            return
        self.draining = True
        self._pool.close_where(lambda key: True)
        with trio.CancelScope(shield=True):
            await trio.sleep(KNOCKING_SECONDS)
            await self._last_knocks()
        for listener in self._listeners.values():
            listener.accept_pending()
            listener.close()
        self._doors_open = False
        self._socks.close()
        if self._names is not None:
            self._names.drain(self._maybe_drained)
        self.context.reactor.call_later(GOAWAY_DELAY, self._say_goodbye)

    async def _last_knocks(self) -> None:
        """Return when no handshake with our listeners is half done, or has been for too long."""
        patience = trio.move_on_after(LAST_KNOCK_SECONDS)
        with patience, suppress(OSError), self.context.network.knocks() as some:
            while await trio.to_thread.run_sync(some):  # noqa: ASYNC110 (the kernel rings no bell)
                await trio.sleep(KNOCK_CHECK_SECONDS)

    def retire(self) -> None:
        """Leave the listeners to a newer process, which has them too; what is open goes on."""
        if self.draining:
            return
        self.draining = True
        self._pool.close_where(lambda key: True)
        for listener in self._listeners.values():
            listener.close()
        self._doors_open = False
        self._socks.close()
        if self._names is not None:
            self._names.retire(self._maybe_drained)
        self.context.reactor.call_later(GOAWAY_DELAY, self._say_goodbye)

    def abort(self, reason: str = DRAINED) -> None:
        """End everything now; each connection gets its record."""
        self.draining = True
        self._doors_open = False
        self._socks.close()
        for listener in self._listeners.values():
            listener.close()
        if self._names is not None:
            self._names.close()
        for connection in self.context.open.all():
            connection.close(reason)
        for tunnel in tuple(self._tunnels):
            tunnel.close()
        self._pool.close()
        self._maybe_drained()

    def mesh_changed(self) -> Iterator[None]:
        """Ask policy again where it changed, and forget tunnels to workloads that are gone; in steps."""
        mesh = self.context.mesh
        self._pool.close_where(lambda key: mesh.workload(key.destination_uid) is None)
        me = self.context.me
        policies = mesh.policies_for(me) if me is not None else self._policies
        if policies is not None and policies != self._policies:
            self._policies = policies
            yield from self._recheck(policies)
        yield

    def _recheck(self, policies: tuple[Policy, ...]) -> Iterator[None]:
        for number, connection in enumerate(self.context.open.all(), 1):
            if connection.facts is not None and not decide(policies, connection.facts).allowed:
                connection.close(POLICY_CHANGED, Flag.DENY)
            if number % RECHECK_STEP == 0:
                yield

    def tunnels(self) -> tuple[TunnelConnection, ...]:
        """Those that are open, both ways."""
        return (*(each.connection for each in self._tunnels), *self._pool.connections())

    def count(self) -> None:
        """Bring the metrics of open connections up to date."""
        for connection in self.context.open.all():
            connection.count()

    def statistics(self) -> ProxyStatistics:
        """What it carries."""
        pool = self._pool.statistics()
        return ProxyStatistics(
            len(self.context.open), len(self._tunnels), pool.connections, self.handshakes, pool.handshakes
        )

    def dump(self) -> dict[str, object]:
        """Plain data for people."""
        me, identity = self.context.me, self.context.identity
        connections: dict[str, list[dict[str, str]]] = {"inbound": [], "outbound": []}
        for each in self.context.open.all():
            found = each.dump()
            connections[found.pop("direction")].append(found)
        return {
            "state": "Draining" if self.draining else "Up",
            "connections": connections,
            "info": {
                "name": me.name if me is not None else "",
                "namespace": identity.namespace,
                "trustDomain": identity.trust_domain,
                "serviceAccount": identity.service_account,
            },
            "statistics": asdict(self.statistics()),
        }

    def _accepted_outbound(self, sock: socket.socket) -> None:
        OutboundConnection(self.context, self._pool, *self._captured(sock, OUTBOUND_PORT)).begin()

    def _accepted_plaintext(self, sock: socket.socket) -> None:
        PassthroughConnection(self.context, *self._captured(sock, INBOUND_PLAINTEXT_PORT)).begin()

    def _captured(self, sock: socket.socket, port: int) -> tuple[SocketChannel, Address, Address]:
        """The channel of what came to *port*, whom it is from, and where that wanted to go."""
        context = self.context
        source = plain_address(self._listeners[port].accepted_from)
        target = context.network.original_destination(sock, source)
        return SocketChannel(context.reactor, sock, resets=True), source, target

    def _accepted_hbone(self, sock: socket.socket) -> None:
        try:
            handshake = InboundHandshake(self.context, sock, self._shaken)
        except OSError:
            sock.close()  # Reset while it waited in the queue: nobody is there to be recorded.
            return
        try:
            self._door.knock()
        except Unavailable as exc:
            handshake.refuse(str(exc))
            return
        handshake.begin()

    def _shaken(self, handshake: InboundHandshake, channel: TlsChannel | None) -> None:
        self._door.shaken()
        if channel is None:
            return
        self.handshakes += 1
        try:
            self._door.enter(channel.peer_identity)
        except Unavailable as exc:
            channel.abort()
            handshake.finish(str(exc), Flag.CONNECT)
            return
        tunnel = InboundTunnel(self.context, channel, handshake.source, self._tunnel_closed)
        self._tunnels.add(tunnel)
        handshake.leave()
        if self.draining:
            # It knocked before the door was closed: its first request is still welcome.
            self.context.reactor.call_later(GOAWAY_DELAY, tunnel.goaway)

    def _tunnel_closed(self, tunnel: InboundTunnel) -> None:
        self._tunnels.discard(tunnel)
        self._door.leave(tunnel.identity)
        self._maybe_drained()

    def _say_goodbye(self) -> None:
        for tunnel in tuple(self._tunnels):
            tunnel.goaway()
        self._maybe_drained()

    def _maybe_drained(self) -> None:
        if self.draining and self._names is not None and not len(self.context.open):
            self._names.others_ended()
        if self.draining and not self._busy():
            self.context.reactor.call_soon(self._drained)

    def _busy(self) -> bool:
        """Whether something is open. The doors count: the last to leave may not be the last to come."""
        names = self._names is not None and self._names.open
        return self._doors_open or names or bool(self._tunnels) or len(self.context.open) > 0

    def _drained(self) -> None:
        if self._on_drained is None or self._busy():
            return
        on_drained, self._on_drained = self._on_drained, None
        self._pool.close()
        self.context.network.close()
        on_drained(self)


def hbone_dialler(context: Context) -> Dialler:
    """Dials from the pod, on behalf of the pod's identity."""

    def dial(key: PoolKey, on_connected: OnConnected) -> None:
        def dialled(result: socket.socket | OSError) -> None:
            if isinstance(result, OSError):
                on_connected(result)
                return
            try:
                tls = context.svids.context_nowait(key.source_identity, server=False)
            except Unavailable as exc:
                result.close()
                on_connected(exc)
                return
            prepare_hbone(context.reactor, result)
            connect_tls(context.reactor, result, tls, key.identities, on_connected)

        context.network.dial((key.ip, key.port), dialled)

    return dial
