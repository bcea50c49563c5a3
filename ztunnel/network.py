"""The pod's network as its proxy sees it: listeners inside it, connections out of it.

``PodNetwork`` is the seam at which tests and the loopback fabric stand in for the kernel; ``NetnsNetwork``
is the real one. A socket stays where it was made, so nothing here runs inside the pod for longer than
``socket()`` takes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol, TypeAlias

from ambient.engine.dial import dial_socket
from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import (
    CLONE_NEWNET,
    PROXY_MARK,
    listen_in,
    netns_identity,
    original_destination,
    socket_in,
)
from ambient.engine.reactor import Reactor
from ambient.wire import netlink_diag
from ambient.wire.netlink import NETLINK_SOCK_DIAG
from ztunnel.source_port_plan import MAX_ATTEMPTS, SourcePorts

Address: TypeAlias = tuple[str, int]
OnDialled: TypeAlias = Callable[[socket.socket | OSError], None]

# ioctl_ns(2).
NS_GET_NSTYPE = 0xB703

NAME_HOSTS = ("127.0.0.1", "::1")
# Istio's backlog; a resolver seldom comes by TCP.
NAME_BACKLOG = 128
_NO_SUCH_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

# The kernel's two ways to say that a chosen source port will not do: bind's and connect's.
_PORT_TAKEN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


class Cancellable(Protocol):
    """Something under way that can be given up without an answer."""

    def cancel(self) -> None:
        """Give up silently."""
        ...


class PodNetwork(Protocol):
    """What a ``WorkloadProxy`` needs of the network it stands in."""

    def listen(self, port: int) -> socket.socket:
        """A listener on *port* that takes redirected connections."""
        ...

    def listen_locally(self, port: int) -> socket.socket:
        """A listener on *port* of the pod's loopback, for the pod itself."""
        ...

    def original_destination(self, sock: socket.socket, peer: Address) -> Address:
        """Where *peer*, whose connection was accepted, wanted to go."""
        ...

    def dial(
        self, address: Address, on_done: OnDialled, *, source: str = "", live: Container[Address] = ()
    ) -> Cancellable | None:
        """Connect from the pod to *address*; None: *on_done* has the socket already.

        Args:
            source: The client's ip, if the connection is to carry it.
            live: Clients connected now, whose ports the connection must not take.
        """
        ...

    def listen_for_names(self, port: int) -> list[tuple[socket.socket, socket.socket]]:
        """Datagram socket and listener on *port*, for each family of the pod's loopback."""
        ...

    def ask(self, address: Address) -> socket.socket:
        """A datagram socket connected to *address*, so that nobody else can answer."""
        ...

    def knocks(self) -> AbstractContextManager[Callable[[], bool]]:
        """A question for a thread of its own: are there handshakes with our listeners that are half done?"""
        ...

    def close(self) -> None:
        """Release what keeps the pod's network in reach."""
        ...


class NetnsNetwork:
    """A pod's network namespace.

    Args:
        netns_fd: The namespace; ours to close, unless this raises.

    Raises:
        OSError: it is no network namespace, or our own, whose ports are not a pod's to give.
    """

    def __init__(self, reactor: Reactor, netns_fd: int) -> None:
        _require_pods_namespace(netns_fd)
        self._reactor = reactor
        self._ports = SourcePorts(random.getrandbits(16))
        self.netns_fd = netns_fd

    def listen(self, port: int) -> socket.socket:
        """A dual-stack listener; transparent, so that TPROXY may give it foreign addresses."""
        return listen_in(self.netns_fd, port, transparent=True, mark=PROXY_MARK)

    def listen_locally(self, port: int) -> socket.socket:
        """On 127.0.0.1; nobody redirects to it."""
        return listen_in(self.netns_fd, port, host="127.0.0.1")

    def original_destination(self, sock: socket.socket, peer: Address) -> Address:
        """By conntrack after REDIRECT, by the local address after TPROXY."""
        return original_destination(sock, peer)

    def dial(
        self, address: Address, on_done: OnDialled, *, source: str = "", live: Container[Address] = ()
    ) -> Cancellable | None:
        """Connect from inside; a pod that calls itself keeps its address anyway, so nothing is spoofed."""
        if not source or source == address[0]:
            return self.dial_from(address, on_done, None)
        return _SpoofedDial(self, self._ports, address, on_done, source, live).begin()

    def dial_from(self, address: Address, on_done: OnDialled, source: Address | None) -> Cancellable | None:
        """One attempt, from exactly *source* if it is given."""
        return dial_socket(
            self._reactor,
            address,
            on_done,
            netns_fd=self.netns_fd,
            mark=PROXY_MARK,
            source=source,
            transparent=source is not None,
        )

    def listen_for_names(self, port: int) -> list[tuple[socket.socket, socket.socket]]:
        """On 127.0.0.1 and ::1, to which REDIRECT sends: a wildcard socket's answers would not be undone."""
        return name_sockets(self.netns_fd, NAME_HOSTS, port)

    def ask(self, address: Address) -> socket.socket:
        """From a port that no application gets: conntrack may still know an application's as captured."""
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        sock = socket_in(self.netns_fd, family, socket.SOCK_DGRAM, mark=PROXY_MARK)
        try:
            for attempt in range(MAX_ATTEMPTS):
                try:
                    sock.bind(("", self._ports.candidate(attempt, "", ())))
                    break
                except OSError as exc:
                    if exc.errno not in _PORT_TAKEN:
                        raise
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock

    @contextmanager
    def knocks(self) -> Iterator[Callable[[], bool]]:
        """Told by the kernel: such a handshake has the mark of its listener, whatever address it is for.

        It takes the kernel some milliseconds, since it walks a table of all namespaces.
        """
        with NetlinkSocket(self.netns_fd, NETLINK_SOCK_DIAG) as nl:
            yield partial(_any_knocks, nl)

    def close(self) -> None:
        """Close the descriptor; sockets that were made inside live on."""
        os.close(self.netns_fd)


def _any_knocks(nl: NetlinkSocket) -> bool:
    return any(
        netlink_diag.decode_socket(message).mark == PROXY_MARK
        for message in nl.dump(netlink_diag.dump_tcp(netlink_diag.SYN_RECV))
    )


def name_sockets(
    netns_fd: int | None, hosts: Sequence[str], port: int
) -> list[tuple[socket.socket, socket.socket]]:
    """Datagram socket and listener on each of *hosts*; a family that the namespace lacks is left out.

    They share their port (SO_REUSEPORT) with those of another ztunnel, or of a proxy that still drains.

    Raises:
        OSError: the port is taken; then nothing is left open.
    """
    made: list[tuple[socket.socket, socket.socket]] = []
    for host in hosts:
        try:
            made.append(_name_sockets_on(netns_fd, host, port))
        except OSError as exc:
            if exc.errno in _NO_SUCH_FAMILY and ":" in host:
                continue
            for pair in made:
                for sock in pair:
                    sock.close()
            raise
    return made


def _name_sockets_on(netns_fd: int | None, host: str, port: int) -> tuple[socket.socket, socket.socket]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made: list[socket.socket] = []
    try:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            made.append(socket_in(netns_fd, family, kind))
            made[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            made[-1].bind((host, port))
        made[1].listen(NAME_BACKLOG)
    except OSError:
        for sock in made:
            sock.close()
        raise
    return made[0], made[1]


def _require_pods_namespace(fd: int) -> None:
    if fcntl.ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET:
        raise OSError(errno.EINVAL, "not a network namespace")
    own = os.stat("/proc/self/ns/net")
    if netns_identity(fd) == (own.st_dev, own.st_ino):
        raise OSError(errno.EINVAL, "the namespace is this node's, not a pod's")


class _SpoofedDial:
    """Tries source ports until the kernel takes one."""

    def __init__(
        self,
        network: NetnsNetwork,
        ports: SourcePorts,
        address: Address,
        on_done: OnDialled,
        source: str,
        live: Container[Address],
    ) -> None:
        self._network = network
        self._ports = ports
        self._address = address
        self._on_done = on_done
        self._source = source
        self._live = live
        self._attempt = 0
        self._dialling: Cancellable | None = None

    def begin(self) -> Cancellable | None:
        """The first try; None: it has connected."""
        self._dial()
        return self if self._dialling is not None else None

    def cancel(self) -> None:
        if self._dialling is not None:
            self._dialling.cancel()

    def _dial(self) -> None:
        port = self._ports.candidate(self._attempt, self._source, self._live)
        self._dialling = self._network.dial_from(self._address, self._dialled, (self._source, port))

    def _dialled(self, result: socket.socket | OSError) -> None:
        self._attempt += 1
        taken = isinstance(result, OSError) and result.errno in _PORT_TAKEN
        if taken and self._attempt < MAX_ATTEMPTS:
            self._dial()
        else:
            self._on_done(result)
