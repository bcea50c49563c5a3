"""One name asked of the upstream servers on behalf of a pod, from inside its network.

In the reactor. By the way it came: who asks by TCP wants what does not fit a datagram.
"""

from __future__ import annotations

import random
import socket
import struct
from collections.abc import Callable, Sequence
from typing import Protocol, TypeAlias

from ambient.engine.channel import NullReceiver, SocketChannel
from ambient.engine.reactor import IN, Reactor, Timer
from ambient.wire.dns import MAX_TCP_BYTES, is_answer_to, with_identifier
from ztunnel.network import Cancellable, PodNetwork

DNS_PORT = 53
# ztunnel's figure, for all upstream servers together; each gets its share of what is left.
FORWARD_SECONDS = 5.0

LENGTH = struct.Struct("!H")

OnReply: TypeAlias = Callable[[bytes | None], None]


class Forwarding:
    """Asks one server after the other until one answers or the time is up.

    Args:
        message: The question as the resolver sent it.
        on_reply: Called once, with the answer under the question's own number, or None. Never before the
            constructor returns.
    """

    def __init__(
        self,
        reactor: Reactor,
        network: PodNetwork,
        servers: Sequence[str],
        message: bytes,
        by_udp: bool,
        on_reply: OnReply,
    ) -> None:
        self._reactor = reactor
        self._network = network
        self._servers = list(servers)
        self._message = message
        self._by_udp = by_udp
        self._on_reply: OnReply | None = on_reply
        self._ends = reactor.now() + FORWARD_SECONDS
        self._attempt: Cancellable | None = None
        self._patience: Timer | None = None
        reactor.call_soon(self._next, self._crashed)

    def cancel(self) -> None:
        """Give up without an answer."""
        self._on_reply = None
        self._release()

    def _next(self) -> None:
        self._release()
        if self._on_reply is None:
            return
        left = self._ends - self._reactor.now()
        if not self._servers or left <= 0:
            self._done(None)
            return
        share = left / len(self._servers)
        server = self._servers.pop(0)
        # A number of our own: who guesses the application's must not guess ours.
        sent = with_identifier(self._message, random.SystemRandom().getrandbits(16))
        self._patience = self._reactor.call_later(share, self._next, self._crashed)
        try:
            ask = _by_datagram if self._by_udp else _by_stream
            self._attempt = ask(self._reactor, self._network, server, sent, self._answered)
        except OSError:
            self._reactor.call_soon(self._next, self._crashed)

    def _answered(self, reply: bytes | None) -> None:
        if reply is None:
            self._next()
        else:
            self._done(with_identifier(reply, int.from_bytes(self._message[:2], "big")))

    def _done(self, reply: bytes | None) -> None:
        self._release()
        on_reply, self._on_reply = self._on_reply, None
        if on_reply is not None:
            on_reply(reply)

    def _release(self) -> None:
        attempt, self._attempt = self._attempt, None
        if attempt is not None:
            attempt.cancel()
        if self._patience is not None:
            self._patience.cancel()

    def _crashed(self, exc: Exception) -> None:
        self._done(None)


class _Ask(Protocol):
    def __call__(
        self, reactor: Reactor, network: PodNetwork, server: str, sent: bytes, on_answer: OnReply
    ) -> Cancellable: ...


class _Datagrams:
    """Waits on one connected socket for the one datagram that answers."""

    def __init__(self, reactor: Reactor, sock: socket.socket, sent: bytes, on_answer: OnReply) -> None:
        self._reactor = reactor
        self._sock = sock
        self._sent = sent
        self._on_answer = on_answer
        reactor.add(sock.fileno(), IN, self._readable, self._crashed)

    def cancel(self) -> None:
        if self._sock.fileno() >= 0:
            self._reactor.remove(self._sock.fileno())
            self._sock.close()

    def _readable(self, events: int) -> None:
        try:
            reply = self._sock.recv(MAX_TCP_BYTES)
        except BlockingIOError:
            return
        except OSError:  # Nobody there (ICMP): the next server at once.
            self._on_answer(None)
            return
        if is_answer_to(reply, self._sent):
            self._on_answer(reply)

    def _crashed(self, exc: Exception) -> None:
        self.cancel()


def _by_datagram(
    reactor: Reactor, network: PodNetwork, server: str, sent: bytes, on_answer: OnReply
) -> Cancellable:
    sock = network.ask((server, DNS_PORT))
    try:
        sock.send(sent)
    except OSError:
        sock.close()
        raise
    return _Datagrams(reactor, sock, sent, on_answer)


class _Stream(NullReceiver):
    """One question and one answer over one connection."""

    def __init__(
        self, reactor: Reactor, network: PodNetwork, server: str, sent: bytes, on_answer: OnReply
    ) -> None:
        self._reactor = reactor
        self._sent = sent
        self._on_answer = on_answer
        self._channel: SocketChannel | None = None
        self._data = bytearray()
        self._over = False
        self._dialling: Cancellable | None = network.dial((server, DNS_PORT), self._dialled)

    def cancel(self) -> None:
        self._over = True
        if self._dialling is not None:
            self._dialling.cancel()
        if self._channel is not None:
            self._channel.abort()

    def _dialled(self, result: socket.socket | OSError) -> None:
        self._dialling = None
        if isinstance(result, OSError):
            self._answer(None)
            return
        self._channel = SocketChannel(self._reactor, result)
        self._channel.start(self)
        self._channel.write(LENGTH.pack(len(self._sent)) + self._sent)

    def data_received(self, data: memoryview) -> None:
        self._data += data
        if len(self._data) < LENGTH.size:
            return
        end = LENGTH.size + LENGTH.unpack_from(self._data)[0]
        if len(self._data) >= end:
            reply = bytes(self._data[LENGTH.size : end])
            self._answer(reply if is_answer_to(reply, self._sent) else None)

    def eof_received(self) -> None:
        self._answer(None)

    def channel_closed(self, exc: Exception | None) -> None:
        self._answer(None)

    def _answer(self, reply: bytes | None) -> None:
        if not self._over:
            self._over = True
            self._on_answer(reply)


_by_stream: _Ask = _Stream
