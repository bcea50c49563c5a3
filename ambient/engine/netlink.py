"""A netlink socket in any network namespace: say what the kernel should do, hear whether it did.

Floor 2. The kernel does the work within ``send``, so the calls here are plain functions: most take
microseconds; deleting nf_tables rules takes some 15 ms, and belongs into a thread where a loop waits.

Use::

    with NetlinkSocket(node_fd) as nl:                     # None: this process's own namespace
        nl.add_veth("p1", "eth0", peer_netns=pod_fd)
        nl.set_up("p1")
        nl.add_route("10.244.1.2/32", link="p1")
    with NetlinkSocket(pod_fd) as nl:
        nl.set_up("lo")
        nl.set_up("eth0")
        nl.add_address("eth0", "10.244.1.2/32")
        nl.add_route("10.244.1.1/32", link="eth0")
        nl.add_route("0.0.0.0/0", link="eth0", gateway="10.244.1.1")

A refusal is an ``OSError`` of the kernel's errno (``FileExistsError``, ``PermissionError``, ...) whose
text names the act. Adding an address or a route that is there already is no error.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Self

from ambient.engine.netns import in_netns
from ambient.wire import netlink, netlink_route
from ambient.wire.netlink import NETLINK_ROUTE, Ack, Message, Request

# linux/netlink.h and asm-generic/socket.h; the socket module lacks them.
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
SO_SNDBUFFORCE = 32

# One nf_tables transaction is one datagram; without privilege the kernel grants some 400 KiB of this.
SEND_BUFFER_BYTES = 8 * 1024 * 1024
# The kernel fills dump datagrams up to 32 KiB; twice that never cuts one.
RECEIVE_BYTES = 64 * 1024
# The kernel answers within the call; a longer wait would only hide a bug. Picked, not measured.
ANSWER_TIMEOUT = 10.0
# Sent as one datagram: their answers fit into a receive buffer of the kernel's default size. Picked.
REQUESTS_AT_ONCE = 64
# A dump that changed under our hands is asked for again this often; picked, not measured.
DUMP_ATTEMPTS = 5


class NetlinkSocket:
    """One netlink socket; close it, or use it as a context manager.

    Args:
        netns_fd: The namespace to speak to; None is the caller's own. Not kept.
        protocol: ``NETLINK_ROUTE`` (default), ``NETLINK_NETFILTER`` or ``NETLINK_SOCK_DIAG``.
    """

    def __init__(self, netns_fd: int | None = None, protocol: int = NETLINK_ROUTE) -> None:
        self._socket = _netlink_socket(netns_fd, protocol)
        self._sequence = 0
        self._indices: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; twice is fine."""
        self._socket.close()

    # What the kernel is told in general.

    def run(self, *requests: Request) -> None:
        """Send *requests*, as many at once as can be answered, and wait for all their answers.

        Raises:
            OSError: the first refusal. Requests after a refused one were still carried out.
        """
        for refusal in self.refusals(*requests):
            raise refusal

    def refusals(self, *requests: Request) -> list[OSError]:
        """Like ``run``, for acts of which some may be in vain: every refusal, in order, none raised."""
        return [each for some in _at_once(requests) for each in self._refusals(some)]

    def _refusals(self, requests: Sequence[Request]) -> list[OSError]:
        first = self._send(requests)
        waiting = {first + n for n, each in enumerate(requests) if each.flags & netlink.NLM_F_ACK}
        found: list[OSError] = []
        while waiting:
            for ack in _only_acks(self._messages()):
                waiting.discard(ack.sequence)
                if ack.errno:
                    found.append(_refusal(ack, requests[ack.sequence - first]))
        return found

    def transaction(self, requests: Sequence[Request]) -> None:
        """Send an nf_tables batch: all of it happens, or nothing.

        Only refusals and what asks for it is answered, and every answer is there when ``send``
        returns; so a batch of thousands of rules asks for one acknowledgement, where one for each
        would overflow the receive buffer.

        Raises:
            OSError: the first refusal.
        """
        first = self._send(requests)
        for ack in _only_acks([*self._messages(), *self._rest()]):
            if ack.errno:
                raise _refusal(ack, requests[ack.sequence - first])

    def get(self, request: Request) -> Message:
        """Send a request that is answered by one message (and acknowledged)."""
        sequence = self._send((request,))
        answer: Message | None = None
        while True:
            for message in self._messages():
                if message.sequence != sequence:
                    continue
                if message.kind != netlink.NLMSG_ERROR:
                    answer = message
                    continue
                ack = netlink.decode_ack(message)
                if ack.errno or answer is None:
                    raise _refusal(ack, request)
                return answer

    def answers(self, questions: Sequence[Request]) -> list[Message | None]:
        """Ask for many things that may not be there: None for what is refused with ENOENT.

        Args:
            questions: Without a wish for an acknowledgement: the answer is one.

        Raises:
            OSError: another refusal.
        """
        return [each for some in _at_once(questions) for each in self._answers(some)]

    def _answers(self, questions: Sequence[Request]) -> list[Message | None]:
        first = self._send(questions)
        found: list[Message | None] = []
        while len(found) < len(questions):
            for message in self._messages():
                ack = netlink.decode_ack(message) if message.kind == netlink.NLMSG_ERROR else None
                if ack is not None and ack.errno != errno.ENOENT:
                    raise _refusal(ack, questions[ack.sequence - first])
                found.append(message if ack is None else None)
        return found

    def dump(self, request: Request) -> list[Message]:
        """Send a dump request; all its messages.

        Raises:
            OSError: the kernel refused, or the table kept changing while it was read.
        """
        for _ in range(DUMP_ATTEMPTS):
            messages, whole = self._dump_once(request)
            if whole:
                return messages
        raise InterruptedError(f"cannot {request.what}: it changes faster than it can be read")

    # Links, addresses, routes.

    def add_veth(self, name: str, peer: str, *, peer_netns: int | None = None, mtu: int = 0) -> None:
        """Make a pair of links; *peer* starts in the namespace *peer_netns* (a descriptor) if given."""
        self.run(netlink_route.add_veth(name, peer, peer_netns_fd=peer_netns, mtu=mtu))

    def delete_link(self, name: str) -> None:
        """Delete a link; a veth takes its peer along."""
        self._indices.pop(name, None)
        self.run(netlink_route.delete_link(name))

    def set_up(self, name: str) -> None:
        """Bring a link up."""
        self.run(netlink_route.change_link(name, up=True))

    def set_link(
        self,
        name: str,
        *,
        up: bool | None = None,
        mtu: int = 0,
        netns: int | None = None,
        link_local: bool | None = None,
    ) -> None:
        """Change several things of a link at once; see ``netlink_route.change_link``."""
        if netns is not None:
            self._indices.pop(name, None)
        self.run(netlink_route.change_link(name, up=up, mtu=mtu, netns_fd=netns, link_local=link_local))

    def add_address(self, link: str, cidr: str) -> None:
        """Give a link an address such as ``"10.244.1.2/32"``, usable at once."""
        self.run(netlink_route.add_address(cidr, self._index(link)))

    def delete_address(self, link: str, cidr: str) -> None:
        """Take an address away."""
        self.run(netlink_route.delete_address(cidr, self._index(link)))

    def add_route(
        self,
        destination: str,
        *,
        link: str = "",
        gateway: str = "",
        source: str = "",
        table: int = netlink_route.RT_TABLE_MAIN,
        local: bool = False,
        onlink: bool = False,
    ) -> None:
        """Add or replace a route; see ``netlink_route.add_route``. ``"0.0.0.0/0"`` is the default route."""
        self.run(
            netlink_route.add_route(
                destination,
                link_index=self._index(link) if link else 0,
                gateway=gateway,
                source=source,
                table=table,
                local=local,
                onlink=onlink,
            )
        )

    def delete_route(
        self, destination: str, *, table: int = netlink_route.RT_TABLE_MAIN, local: bool = False
    ) -> None:
        """Delete a route."""
        self.run(netlink_route.delete_route(destination, table=table, local=local))

    def add_neighbour(self, link: str, ip: str, mac: bytes) -> None:
        """Say once and for all which hardware address *ip* has."""
        self.run(netlink_route.add_neighbour(ip, self._index(link), mac))

    def link(self, name: str) -> netlink_route.Link:
        """One link with its counters.

        Raises:
            OSError: ENODEV if there is none.
        """
        return netlink_route.decode_link(self.get(netlink_route.get_link(name)))

    def links(self) -> list[netlink_route.Link]:
        """Every link with its counters."""
        return [netlink_route.decode_link(each) for each in self.dump(netlink_route.dump_links())]

    def addresses(self) -> list[netlink_route.Address]:
        """Every address."""
        return [netlink_route.decode_address(each) for each in self.dump(netlink_route.dump_addresses())]

    def routes(self, family: int = socket.AF_INET, table: int | None = None) -> list[netlink_route.Route]:
        """Every route of *family*, of all tables or of one below 256."""
        found = self.dump(netlink_route.dump_routes(family))
        return [netlink_route.decode_route(each) for each in found if netlink_route.is_of(table, each)]

    def rules(self, family: int = socket.AF_INET, table: int | None = None) -> list[netlink_route.Rule]:
        """Every routing rule of *family* (AF_UNSPEC: of both), to all tables or to one below 256."""
        found = self.dump(netlink_route.dump_rules(family))
        return [netlink_route.decode_rule(each) for each in found if netlink_route.is_of(table, each)]

    def _index(self, name: str) -> int:
        if name not in self._indices:
            self._indices[name] = self.link(name).index
        return self._indices[name]

    def _dump_once(self, request: Request) -> tuple[list[Message], bool]:
        sequence = self._send((request,))
        found: list[Message] = []
        whole = True
        while True:
            for message in self._messages():
                if message.sequence != sequence:
                    continue
                whole = whole and not message.flags & netlink.NLM_F_DUMP_INTR
                if message.kind not in (netlink.NLMSG_DONE, netlink.NLMSG_ERROR):
                    found.append(message)
                    continue
                ack = netlink.decode_ack(message)
                if ack.errno:
                    raise _refusal(ack, request)
                return found, whole

    def _send(self, requests: Sequence[Request]) -> int:
        first = self._sequence + 1
        self._sequence += len(requests)
        try:
            self._socket.send(netlink.encode_all(requests, first))
        except OSError as exc:
            raise OSError(exc.errno, f"cannot {requests[0].what}: {exc.strerror}") from exc
        return first

    def _rest(self) -> list[Message]:
        """What else is there already."""
        found: list[Message] = []
        self._socket.settimeout(0)
        try:
            while True:
                found += self._messages()
        except BlockingIOError:
            return found
        finally:
            self._socket.settimeout(ANSWER_TIMEOUT)

    def _messages(self) -> list[Message]:
        return list(netlink.decode(self._socket.recv(RECEIVE_BYTES)))


def _at_once(requests: Sequence[Request]) -> Iterator[Sequence[Request]]:
    return (requests[start : start + REQUESTS_AT_ONCE] for start in range(0, len(requests), REQUESTS_AT_ONCE))


def _only_acks(messages: Iterable[Message]) -> list[Ack]:
    return [netlink.decode_ack(each) for each in messages if each.kind == netlink.NLMSG_ERROR]


def _netlink_socket(netns_fd: int | None, protocol: int) -> socket.socket:
    with in_netns(netns_fd):
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        made.settimeout(ANSWER_TIMEOUT)
        made.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        made.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        try:
            made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER_BYTES)
        except PermissionError:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        made.bind((0, 0))
    except OSError:
        made.close()
        raise
    return made


def _refusal(ack: Ack, request: Request) -> OSError:
    detail = f" ({ack.text})" if ack.text else ""
    return OSError(ack.errno, f"cannot {request.what}: {os.strerror(ack.errno)}{detail}")
