"""The cluster's name server on one node, by UDP and TCP.

Plumbing: ``names.answer`` decides. A name outside the cluster is asked of the upstream servers, if there
are any; without one it does not exist, which lets a resolver go on at once instead of waiting.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence

import trio

from ambient.errors import RemoteProtocolError
from ambient.model.mesh import Mesh
from ambient.redirect import names
from ambient.wire.dns import MAX_EDNS_BYTES, MAX_TCP_BYTES, Answer, Query, Rcode, encode_answer, parse_query

DNS_PORT = 53
# CoreDNS in Kubernetes hands out 30 s; ours is short, since pods come and go while one watches.
TTL_SECONDS = 5
UPSTREAM_SECONDS = 5.0
# A TCP client that says nothing for this long is let go. Picked, not measured.
TCP_IDLE_SECONDS = 10.0
# Questions in flight to upstream servers; beyond it they are answered SERVFAIL. Picked, not measured.
MAX_FORWARDED = 256
MAX_TCP_CLIENTS = 256

_LENGTH = struct.Struct("!H")


class DnsServer:
    """Answers on every address it is given, for as long as its nursery lives."""

    def __init__(self, mesh: Callable[[], Mesh], upstreams: Sequence[str] = ()) -> None:
        self._mesh = mesh
        self._upstreams = tuple(upstreams)
        self._forwarding = trio.CapacityLimiter(MAX_FORWARDED)
        self._clients = trio.CapacityLimiter(MAX_TCP_CLIENTS)
        self.answered = 0

    async def serve(
        self,
        addresses: Sequence[str],
        port: int = DNS_PORT,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until cancelled; the sockets are this task's.

        Raises:
            OSError: an address cannot be bound.
        """
        async with trio.open_nursery() as nursery:
            for address in addresses:
                family = socket.AF_INET6 if ":" in address else socket.AF_INET
                datagrams = trio.socket.socket(family, socket.SOCK_DGRAM)
                await datagrams.bind((address, port))
                streams = trio.socket.socket(family, socket.SOCK_STREAM)
                streams.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                await streams.bind((address, port))
                streams.listen(128)
                nursery.start_soon(self._serve_udp, datagrams, nursery)
                nursery.start_soon(trio.serve_listeners, self._serve_tcp, [trio.SocketListener(streams)])
            task_status.started()

    async def _serve_udp(self, sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        with sock:
            while True:
                data, peer = await sock.recvfrom(MAX_EDNS_BYTES)
                reply = self._decide(data, by_udp=True)
                if reply is None:
                    nursery.start_soon(self._forward_udp, sock, data, peer)
                elif reply:
                    await _send_to(sock, reply, peer)

    async def _forward_udp(self, sock: trio.socket.SocketType, data: bytes, peer: tuple[object, ...]) -> None:
        await _send_to(sock, await self._forward(data, by_udp=True), peer)

    async def _serve_tcp(self, stream: trio.SocketStream) -> None:
        try:
            self._clients.acquire_on_behalf_of_nowait(stream)
        except trio.WouldBlock:
            await stream.aclose()
            return
        try:
            async with stream:
                await self._answer_stream(stream)
        except (trio.BrokenResourceError, trio.TooSlowError, RemoteProtocolError):
            return
        finally:
            self._clients.release_on_behalf_of(stream)

    async def _answer_stream(self, stream: trio.SocketStream) -> None:
        while True:
            with trio.fail_after(TCP_IDLE_SECONDS):
                head = await _exactly(stream, _LENGTH.size)
                if head is None:
                    return
                data = await _exactly(stream, _LENGTH.unpack(head)[0])
            if data is None:
                return
            reply = self._decide(data, by_udp=False)
            if reply is None:
                reply = await self._forward(data, by_udp=False)
            if not reply:
                return
            with trio.fail_after(TCP_IDLE_SECONDS):
                await stream.send_all(_LENGTH.pack(len(reply)) + reply)

    def _decide(self, data: bytes, *, by_udp: bool) -> bytes | None:
        """The reply; None: forward it; empty: not worth an answer."""
        try:
            query = parse_query(data)
        except RemoteProtocolError:
            return b""
        found = names.answer(self._mesh(), query)
        if found is None and not self._upstreams:
            found = Answer(Rcode.NXDOMAIN)
        if found is None:
            return None
        self.answered += 1
        return _encode(query, found, by_udp)

    async def _forward(self, data: bytes, *, by_udp: bool) -> bytes:
        query = parse_query(data)
        try:
            self._forwarding.acquire_on_behalf_of_nowait(query)
        except trio.WouldBlock:
            return _encode(query, Answer(Rcode.SERVFAIL), by_udp)
        try:
            for upstream in self._upstreams:
                reply = await _ask(upstream, data)
                if reply is not None:
                    return reply
        finally:
            self._forwarding.release_on_behalf_of(query)
        return _encode(query, Answer(Rcode.SERVFAIL), by_udp)


def _encode(query: Query, found: Answer, by_udp: bool) -> bytes:
    room = query.udp_room if by_udp else MAX_TCP_BYTES
    return encode_answer(query, found, ttl=TTL_SECONDS, max_bytes=room)


async def _send_to(sock: trio.socket.SocketType, reply: bytes, peer: tuple[object, ...]) -> None:
    try:
        await sock.sendto(reply, peer)
    except OSError:
        return  # The client went away, or its network did; it will ask again.


async def _exactly(stream: trio.SocketStream, count: int) -> bytes | None:
    data = b""
    while len(data) < count:
        more = await stream.receive_some(count - len(data))
        if not more:
            return None
        data += more
    return data


async def _ask(upstream: str, data: bytes) -> bytes | None:
    family = socket.AF_INET6 if ":" in upstream else socket.AF_INET
    with trio.socket.socket(family, socket.SOCK_DGRAM) as sock:
        try:
            with trio.fail_after(UPSTREAM_SECONDS):
                # Connected, so that an answer from anybody else never arrives.
                await sock.connect((upstream, DNS_PORT))
                await sock.send(data)
                while True:
                    reply = await sock.recv(MAX_TCP_BYTES)
                    if reply[:2] == data[:2]:
                        return bytes(reply)
        except (OSError, trio.TooSlowError):
            return None
