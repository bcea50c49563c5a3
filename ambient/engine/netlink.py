"""A netlink socket that works in any namespace: send, wait for the kernel's word, raise what it says.

Floor 2. The kernel answers within the ``send`` call, so the methods block for microseconds only
(a transaction that deletes nf_tables objects: about 15 ms) and need no task of their own.

Use::

    with NetlinkSocket(node_fd) as netlink:
        netlink.add_veth("p1", "eth0", peer_netns=pod_fd)
        netlink.set_up("p1")
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from ambient.engine.netns import in_netns
from ambient.wire import rtnetlink
from ambient.wire.netlink import NLMSG_DONE, NLMSG_ERROR, Message, decode, encode, errno_of
from ambient.wire.rtnetlink import Link

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12
# The kernel answers at once; a second of silence is a bug. Picked, not measured.
ANSWER_SECONDS = 5.0
_READ_BYTES = 1 << 18


class NetlinkSocket:
    """One netlink socket, born in the namespace *netns_fd* (None: this one). Close it, or use ``with``."""

    def __init__(self, netns_fd: int | None = None, protocol: int = NETLINK_ROUTE) -> None:
        with in_netns(netns_fd):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _READ_BYTES)
        self._socket.bind((0, 0))
        self._socket.settimeout(ANSWER_SECONDS)
        self._sequence = 0
        self._indexes: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; idempotent."""
        self._socket.close()

    def call(self, message: Message, doing: str) -> None:
        """Send one message and wait for its acknowledgement.

        Raises:
            OSError: the kernel refused; the message says *doing* what.
        """
        self._sequence += 1
        self._socket.send(encode(message, self._sequence))
        for answer in self._answers():
            if answer.kind == NLMSG_ERROR and answer.sequence == self._sequence:
                _check(errno_of(answer), doing)
                return

    def dump(self, message: Message, doing: str) -> list[Message]:
        """Send a listing request and return every message of the answer."""
        self._sequence += 1
        self._socket.send(encode(message, self._sequence))
        found: list[Message] = []
        for answer in self._answers():
            if answer.kind == NLMSG_ERROR:
                _check(errno_of(answer), doing)
            if answer.kind == NLMSG_DONE:
                break
            found.append(answer)
        return found

    def transaction(self, raw: bytes, acknowledged: int, doing: str) -> None:
        """Send a batch in one datagram and read *acknowledged* answers; the first refusal is raised.

        nf_tables applies a batch as a whole or not at all.
        """
        self._socket.send(raw)
        for answer in self._answers():
            if answer.kind != NLMSG_ERROR:
                continue
            _check(errno_of(answer), doing)
            acknowledged -= 1
            if acknowledged <= 0:
                return

    def _answers(self) -> Iterable[Message]:
        while True:
            yield from decode(self._socket.recv(_READ_BYTES))

    # -- links, addresses, routes -------------------------------------------------------------

    def links(self) -> list[Link]:
        """Every link of the namespace, counters included."""
        answers = self.dump(rtnetlink.get_links(), "list links")
        return [rtnetlink.parse_link(answer) for answer in answers if answer.kind == rtnetlink.RTM_NEWLINK]

    def index(self, name: str) -> int:
        """The number of a link by name.

        Raises:
            OSError: ENODEV, no such link here.
        """
        if name not in self._indexes:
            self._indexes = {link.name: link.index for link in self.links()}
        if name not in self._indexes:
            raise OSError(19, f"no link {name!r} in this namespace")
        return self._indexes[name]

    def add_veth(self, name: str, peer: str, *, peer_netns: int | None = None, mtu: int = 1500) -> None:
        """Make a veth pair, the peer in the namespace *peer_netns*."""
        self.call(rtnetlink.new_veth(name, peer, peer_netns=peer_netns, mtu=mtu), f"add veth {name}")

    def set_up(self, name: str) -> None:
        """Bring a link up."""
        self.call(rtnetlink.set_up(self.index(name)), f"set {name} up")

    def del_link(self, name: str) -> None:
        """Remove a link."""
        self.call(rtnetlink.del_link(self.index(name)), f"delete {name}")
        self._indexes.pop(name, None)

    def add_address(self, name: str, interface: str) -> None:
        """Give a link an address such as ``"10.244.1.5/32"``; once more is no error."""
        self.call(rtnetlink.new_address(self.index(name), interface), f"add {interface} to {name}")

    def add_route(
        self,
        destination: str,
        *,
        link: str | None = None,
        via: str | None = None,
        onlink: bool = False,
        source: str | None = None,
    ) -> None:
        """Add or replace a route, for example ``add_route("0.0.0.0/0", via="10.244.1.1", link="eth0")``."""
        index = None if link is None else self.index(link)
        message = rtnetlink.new_route(destination, link=index, via=via, onlink=onlink, source=source)
        self.call(message, f"add route to {destination}")


def _check(code: int, doing: str) -> None:
    if code:
        raise OSError(code, f"{doing}: {os.strerror(code)}")
