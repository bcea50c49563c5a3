"""Port 15080 on the pod's loopback: SOCKS5, a way into the mesh where nothing can be redirected.

Off unless ``UNSTABLE_ENABLE_SOCKS5=true``, as in Istio's ztunnel. After the handshake a connection is an
outbound one like any other: same routes, same tunnels, same record. Names are the mesh's: those of services
and pods, by what ``dns_plan`` knows; another name is refused, because we resolve nothing for strangers.
"""

from __future__ import annotations

import socket
from collections.abc import Callable

from ambient.engine.channel import Channel, SocketChannel
from ambient.engine.pool import TunnelPool
from ambient.engine.reactor import IN, Timer
from ambient.errors import RemoteProtocolError
from ambient.model.record import Flag
from ambient.wire.dns import TYPE_A, TYPE_AAAA, Query
from ambient.wire.socks5 import Refused, Reply, ServerHandshake, reply
from ztunnel.context import Context
from ztunnel.dns_plan import resolve
from ztunnel.network import Address
from ztunnel.outbound import OutboundConnection

# From accept to a known target, and handshakes at once of one pod. Picked, not measured.
HANDSHAKE_SECONDS = 10.0
MAX_HANDSHAKES = 256


class SocksConnection(OutboundConnection):
    """An outbound connection whose client hears by SOCKS what became of it."""

    __slots__ = ()

    def refuse_name(self) -> None:
        """The mesh knows no address for it."""
        self._refuse("no address of that name in the mesh", Flag.CONNECT)

    def join(self, near: Channel, far: Channel) -> None:
        """Say that it is open before anything else is said."""
        near.write(reply(Reply.SUCCEEDED))
        super().join(near, far)

    def _refuse(self, reason: str, flag: Flag) -> None:
        code = Reply.NOT_ALLOWED if flag is Flag.DENY else Reply.HOST_UNREACHABLE
        self._application.write(reply(code))
        self._application.close()
        self.finish(reason, flag)


class SocksDoor:
    """Takes connections to port 15080 through their handshakes."""

    def __init__(self, context: Context, pool: TunnelPool) -> None:
        self._context = context
        self._pool = pool
        self._shaking: set[_Handshake] = set()

    def accepted(self, sock: socket.socket) -> None:
        """One more client."""
        if len(self._shaking) >= MAX_HANDSHAKES:
            sock.close()
            return
        self._shaking.add(_Handshake(self._context, sock, self._done))

    def close(self) -> None:
        """End the handshakes that are under way."""
        for each in tuple(self._shaking):
            each.close()

    def _done(self, handshake: _Handshake, sock: socket.socket | None) -> None:
        self._shaking.discard(handshake)
        if sock is None:
            return
        assert handshake.target is not None
        target = address_of(self._context, handshake.target)
        client = SocketChannel(self._context.reactor, sock)
        connection = SocksConnection(
            self._context, self._pool, client, client.peer_address, target or handshake.target
        )
        if target is None:
            connection.refuse_name()
        else:
            connection.begin()


def address_of(context: Context, target: Address) -> Address | None:
    """*target* with an address in the place of a name; None if the mesh knows none."""
    host, port = target
    if ":" in host or host.replace(".", "").isdecimal():
        return target
    for kind in (TYPE_A, TYPE_AAAA):
        answer = resolve(context.mesh, context.me, Query(0, host, kind, b""), context.chance())
        if answer is not None and answer.addresses:
            return answer.addresses[0], port
    return None


class _Handshake:
    """Reads to the byte, from the socket itself: what follows belongs to the connection."""

    def __init__(
        self,
        context: Context,
        sock: socket.socket,
        on_done: Callable[[_Handshake, socket.socket | None], None],
    ) -> None:
        self._context = context
        self._sock = sock
        self._on_done = on_done
        self._wire = ServerHandshake()
        self._timer: Timer = context.reactor.call_later(HANDSHAKE_SECONDS, self.close, self._crashed)
        context.reactor.add(sock.fileno(), IN, self._readable, self._crashed)

    @property
    def target(self) -> Address | None:
        """Where it wants to go."""
        return self._wire.target

    def close(self) -> None:
        """Give up."""
        self._release()
        self._sock.close()
        self._on_done(self, None)

    def _readable(self, events: int) -> None:
        try:
            while self._wire.target is None:
                data = self._sock.recv(self._wire.needs)
                if not data:
                    self.close()
                    return
                _send(self._sock, self._wire.receive_data(data))
        except BlockingIOError:
            return
        except Refused as exc:
            _send(self._sock, exc.answer)
            self.close()
        except (OSError, RemoteProtocolError):
            self.close()
        else:
            self._release()
            self._on_done(self, self._sock)

    def _release(self) -> None:
        self._timer.cancel()
        self._context.reactor.remove(self._sock.fileno())

    def _crashed(self, exc: Exception) -> None:
        self.close()


def _send(sock: socket.socket, data: bytes) -> None:
    """A dozen bytes at most: they fit the send buffer of a connection on which nothing was sent."""
    if data:
        try:
            sock.send(data)
        except OSError:
            return  # It went away; reading says so, too.
