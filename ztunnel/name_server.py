"""Port 15053: the names that a captured pod looks up, by UDP and TCP.

In the reactor, four sockets a pod and no task. ``dns_plan.resolve`` decides; what it leaves is forwarded.

Leaving in the middle of lookups: rules that capture nothing new come first, but an application may have
asked already, and may ask again from the same socket (conntrack still sends that here). So a server that
drains answers on until the pod's other connections have ended and nobody has asked for a while.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ambient.engine.channel import NullReceiver, SocketChannel
from ambient.engine.listener import Listener
from ambient.engine.reactor import IN, Reactor, Timer
from ambient.errors import RemoteProtocolError
from ambient.wire.dns import MAX_TCP_BYTES, Answer, Query, Rcode, encode_answer, parse_query
from ztunnel.context import Context
from ztunnel.dns_metrics import DnsMetrics
from ztunnel.dns_plan import resolve
from ztunnel.forwarding import LENGTH, Forwarding

log = logging.getLogger("dns")

NAMES_PORT = 15053
# Under which numbers its sockets (two a family) are handed from one process to the next, beside the other
# listeners, whose numbers are their ports. What each is, it knows itself.
DOORS = range(NAMES_PORT, NAMES_PORT + 4)
# ztunnel's TTL.
TTL_SECONDS = 30
# A question is one packet, by TCP too; the largest that resolvers send with options. Picked, not measured.
MAX_QUESTION_BYTES = 4096
# Datagrams read before others of the loop have their turn. Picked, not measured.
DATAGRAMS_PER_EVENT = 64
# Questions under way to upstream servers: of one pod, and of the process, each a descriptor. Picked.
MAX_PENDING = 256
MAX_PENDING_IN_ALL = 2048
# Connections of one pod, the time one may say nothing, and its questions at once. Picked, not measured.
MAX_CLIENTS = 32
IDLE_SECONDS = 10.0
MAX_PIPELINED = 16
# A draining server stops when nobody has asked for this long, and at the latest after twice the time that
# an answer may take: resolvers ask for A and AAAA together, and again after 5 s. Picked, not measured.
QUIET_SECONDS = 1.0
DRAIN_SECONDS = 10.0


@dataclass(slots=True)
class Names:
    """What all name servers of the process share.

    Attributes:
        servers: Addresses of the upstream servers, asked from inside the pod.
        preferred_namespace: Whose services win over others' of the same name.
        pending: Questions under way, of all pods.
    """

    servers: tuple[str, ...] = ()
    preferred_namespace: str = ""
    metrics: DnsMetrics = field(default_factory=DnsMetrics)
    pending: int = 0


Reply = Callable[[bytes], None]


class NameServer:
    """Answers the pod of *context*."""

    def __init__(self, context: Context, names: Names) -> None:
        self._context = context
        self._names = names
        self._sockets: list[socket.socket] = []
        self._listeners: list[Listener] = []
        self._clients: set[_Client] = set()
        self._forwardings: set[Forwarding] = set()
        self._asked = 0.0
        self._on_quiet: Callable[[], None] | None = None
        self._force_at = 0.0
        self._retired = False
        self._timer: Timer | None = None

    def start(self, given: Sequence[socket.socket] = ()) -> None:
        """Open the sockets.

        Args:
            given: Those that an earlier process left; ours to close.

        Raises:
            OSError: the port is taken.
        """
        reactor = self._context.reactor
        found = given or [
            sock for pair in self._context.network.listen_for_names(NAMES_PORT) for sock in pair
        ]
        for sock in found:
            sock.setblocking(False)
            if sock.type == socket.SOCK_DGRAM:
                self._sockets.append(sock)
                reactor.add(sock.fileno(), IN, partial(self._readable, sock), self._crashed)
            else:
                self._listeners.append(Listener(reactor, sock, self._accepted))

    def doors(self) -> list[tuple[int, int]]:
        """(number, descriptor) of each socket, for whoever is to hold them over our end."""
        fds = [each.fileno() for each in self._sockets] + [each.fileno() for each in self._listeners]
        return [(door, fd) for door, fd in zip(DOORS, fds, strict=False) if fd >= 0]

    @property
    def open(self) -> bool:
        """Whether it still answers."""
        return bool(self._sockets)

    def drain(self, on_quiet: Callable[[], None]) -> None:
        """Answer what is under way and on its way, then close and call *on_quiet*."""
        for listener in self._listeners:
            listener.accept_pending()
        self._leave(on_quiet)

    def others_ended(self) -> None:
        """The pod's last proxied connection is over: only lookups may keep it now."""
        self._maybe_quiet()

    def retire(self, on_quiet: Callable[[], None]) -> None:
        """The same, but what is on its way is for a newer process, which has these sockets too."""
        self._retired = True
        for sock in self._sockets:
            self._context.reactor.remove(sock.fileno())
        self._leave(on_quiet)

    def _leave(self, on_quiet: Callable[[], None]) -> None:
        for listener in self._listeners:
            listener.close()
        now = self._context.reactor.now()
        self._on_quiet = on_quiet
        self._force_at = now + DRAIN_SECONDS
        if self._clients:
            self._asked = now  # One that has just come has its question on the way.
        self._maybe_quiet()

    def close(self) -> None:
        """End it now; nobody under way gets an answer."""
        on_quiet, self._on_quiet = self._on_quiet, None
        for listener in self._listeners:
            listener.close()
        for client in tuple(self._clients):
            client.close()
        for forwarding in self._forwardings:
            forwarding.cancel()
            self._names.pending -= 1
        self._forwardings.clear()
        for sock in self._sockets:
            self._context.reactor.remove(sock.fileno())
            sock.close()
        self._sockets.clear()
        if self._timer is not None:
            self._timer.cancel()
        if on_quiet is not None:
            on_quiet()

    def ask(self, message: bytes, by_udp: bool, reply: Reply) -> None:
        """Answer *message* by *reply*, now, later or (if it is no question) never.

        Raises:
            RemoteProtocolError: it is no question.
        """
        query = parse_query(message)
        context, names = self._context, self._names
        self._asked = context.reactor.now()
        series = names.metrics.series(context.me, query.kind, by_udp=by_udp)
        series.requests += 1
        answer = resolve(context.mesh, context.me, query, context.chance(), names.preferred_namespace)
        if answer is None and (len(self._forwardings) >= MAX_PENDING or names.pending >= MAX_PENDING_IN_ALL):
            answer = Answer(Rcode.SERVFAIL)
        if answer is not None:
            reply(_encode(query, answer, by_udp))
            return
        series.forwarded += 1

        def done(found: bytes | None) -> None:
            self._forwardings.discard(forwarding)
            names.pending -= 1
            if found is None:
                series.failures += 1
                log.debug("%s: no upstream answered for %r", context.uid, query.name)
            else:
                series.answered(context.reactor.now() - started)
            reply(found or _encode(query, Answer(Rcode.SERVFAIL), by_udp))
            self._maybe_quiet()

        started = self._asked
        forwarding = Forwarding(context.reactor, context.network, names.servers, message, by_udp, done)
        self._forwardings.add(forwarding)
        names.pending += 1

    def _readable(self, sock: socket.socket, events: int) -> None:
        for _ in range(DATAGRAMS_PER_EVENT):
            if not self._read_one(sock):
                return

    def _read_one(self, sock: socket.socket) -> bool:
        try:
            message, peer = sock.recvfrom(MAX_QUESTION_BYTES)
        except BlockingIOError:
            return False
        try:
            self.ask(message, True, partial(_send, sock, peer))
        except RemoteProtocolError:
            pass  # No question, no answer: whoever sends garbage may have forged its address.
        return True

    def _accepted(self, sock: socket.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            sock.close()
            return
        _Client(self, self._context.reactor, sock, self._clients, self._maybe_quiet)

    def _maybe_quiet(self) -> None:
        if self._on_quiet is None or not self._sockets:
            return
        now = self._context.reactor.now()
        if len(self._context.open) and not self._retired:
            # Until the pod is rid of its other connections conntrack is not told to forget the lookups that
            # were captured: a new one that gets the ports of an old one still comes here.
            self._force_at = now + DRAIN_SECONDS
            return
        waiting = self._forwardings or (now < self._asked + QUIET_SECONDS and not self._retired)
        if waiting and now < self._force_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._context.reactor.call_later(
                min(QUIET_SECONDS, self._force_at - now), self._maybe_quiet, self._crashed
            )
            return
        for sock in () if self._retired else self._sockets:
            while self._read_one(sock):
                pass
        self.close()

    def _crashed(self, exc: Exception) -> None:
        """The reactor has recorded it; the next question is answered all the same."""


class _Client(NullReceiver):
    """One TCP connection of the pod: questions with their lengths, answers as they come."""

    def __init__(
        self,
        server: NameServer,
        reactor: Reactor,
        sock: socket.socket,
        clients: set[_Client],
        on_closed: Callable[[], None],
    ) -> None:
        self._server = server
        self._reactor = reactor
        self._clients = clients
        self._on_closed = on_closed
        self._data = bytearray()
        self._pending = 0
        self._ended = False
        self._closed = False
        clients.add(self)
        self._channel = SocketChannel(reactor, sock)
        self._idle = reactor.call_later(IDLE_SECONDS, self.close)
        self._channel.start(self)

    def close(self) -> None:
        """Say goodbye; answers that are under way are lost."""
        self._ended = True
        self._channel.close()

    def data_received(self, data: memoryview) -> None:
        """Take what came: one read of the channel at most is kept while answers are owed."""
        self._data += data
        self._take()

    def eof_received(self) -> None:
        """It asks no more."""
        self._ended = True
        self._maybe_close()

    def write_ready(self) -> None:
        """It reads its answers again."""
        self._take()

    def channel_closed(self, exc: Exception | None) -> None:
        """It is over."""
        self._closed = True
        self._idle.cancel()
        self._clients.discard(self)
        self._on_closed()

    def _take(self) -> None:
        while not self._closed and (message := self._next_message()) is not None:
            self._pending += 1
            try:
                self._server.ask(message, False, self._reply)
            except RemoteProtocolError:
                self._channel.abort()
                return
        if self._blocked():
            self._channel.pause()
        else:
            self._channel.resume()

    def _blocked(self) -> bool:
        return self._pending >= MAX_PIPELINED or not self._channel.writable

    def _next_message(self) -> bytes | None:
        if self._blocked() or len(self._data) < LENGTH.size:
            return None
        end = LENGTH.size + LENGTH.unpack_from(self._data)[0]
        if end > LENGTH.size + MAX_QUESTION_BYTES:
            return b""  # Which is no question: it ends the connection.
        if len(self._data) < end:
            return None
        message = bytes(self._data[LENGTH.size : end])
        del self._data[:end]
        return message

    def _reply(self, answer: bytes) -> None:
        self._pending -= 1
        if self._closed:
            return
        self._idle.cancel()
        self._idle = self._reactor.call_later(IDLE_SECONDS, self.close)
        self._channel.write(LENGTH.pack(len(answer)) + answer)
        self._reactor.call_soon(self._after_reply)

    def _after_reply(self) -> None:
        if not self._closed:
            self._take()
            self._maybe_close()

    def _maybe_close(self) -> None:
        if self._ended and not self._pending:
            self._channel.close()


def _encode(query: Query, answer: Answer, by_udp: bool) -> bytes:
    room = query.udp_room if by_udp else MAX_TCP_BYTES
    return encode_answer(query, answer, ttl=TTL_SECONDS, max_bytes=room)


def _send(sock: socket.socket, peer: object, answer: bytes) -> None:
    try:
        sock.sendto(answer, peer)  # type: ignore[call-overload]
    except OSError:
        return  # It went away, or has no room: it will ask again.
