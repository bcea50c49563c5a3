"""The TCP sockets in a pod: which are established, whose the proxy's ports are, and ending the old ones."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns
from ambient.model.exclusions import Exclusions
from ambient.redirect.plan import (
    HBONE_PORT,
    INBOUND_PORT,
    MARK_MASK,
    OUTBOUND_PORT,
    PROBE_SOURCES,
    PROXY_MARK,
    Capture,
)
from ambient.wire import netlink_diag
from ambient.wire.netlink import AF_INET, AF_INET6, NETLINK_SOCK_DIAG, Request
from ambient.wire.netlink_diag import CARRYING, CLOSE_WAIT, ESTABLISHED, LISTEN, TcpSocket

PROXY_PORTS = (OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT)


def listeners(netns: int, ports: tuple[int, ...] = PROXY_PORTS) -> tuple[TcpSocket, ...]:
    """The sockets that listen on *ports* in the namespace."""
    return tuple(each for each in _sockets(netns, LISTEN) if each.local_port in ports)


def anybody_listens(netns: int, ports: tuple[int, ...] = PROXY_PORTS) -> bool:
    """Whether one of *ports* is taken on every address of the namespace.

    A quick question for each port; ``listeners`` has the kernel walk over all listeners of the machine.
    """
    with NetlinkSocket(netns, NETLINK_SOCK_DIAG) as nl:
        return any(nl.answers(_listeners_on(ports)))


@functools.cache
def _listeners_on(ports: tuple[int, ...]) -> tuple[Request, ...]:
    return tuple(netlink_diag.find_listener(family, port) for family in (AF_INET6, AF_INET) for port in ports)


def listening_ports(netns: int) -> frozenset[int]:
    """Where anybody listens in the namespace."""
    return frozenset(each.local_port for each in _sockets(netns, LISTEN))


def established(netns: int) -> tuple[TcpSocket, ...]:
    """Connections to elsewhere that carry bytes; those within the pod are never captured and not counted."""
    with NetlinkSocket(netns, NETLINK_SOCK_DIAG) as nl:
        if _only_listens(netns, nl):
            return ()
        found = map(netlink_diag.decode_socket, nl.dump(netlink_diag.dump_tcp(*CARRYING)))
        return tuple(each for each in found if not _stays_inside(each))


def past_the_proxy(netns: int, capture: Capture) -> tuple[TcpSocket, ...]:
    """Connections of a captured pod that its proxy does not carry: those that are older than the capture.

    Whoever the owner of the pod, or the node's probes, wanted left alone is not among them.
    A listing takes its time: it may have an application's new socket, and have been too early for that of
    the proxy. So it is asked for the other end of each that seems to have none here.
    """
    found = unproxied(established(netns), capture)
    if not found:
        return ()
    questions = [question for each in found for question in _other_ends(each)]
    with NetlinkSocket(netns, NETLINK_SOCK_DIAG) as nl:
        answers = nl.answers(questions)
    there = iter([each is not None and netlink_diag.is_connection(each) for each in answers])
    return tuple(each for each, *ends in zip(found, there, there, strict=True) if not any(ends))


def _other_ends(connection: TcpSocket) -> tuple[Request, Request]:
    """Two questions: for the socket of the proxy that it was redirected to, and for its other end."""
    ours = (connection.local, connection.local_port)
    redirected = ("::1" if ":" in connection.local else "127.0.0.1", OUTBOUND_PORT)
    return (
        netlink_diag.find_connection(redirected, ours),
        netlink_diag.find_connection((connection.remote, connection.remote_port), ours),
    )


def unproxied(found: Iterable[TcpSocket], capture: Capture) -> tuple[TcpSocket, ...]:
    """Those of a captured pod's connections that have no socket of the proxy as their other end. Pure.

    An application's connection out was redirected if the proxy accepted it on its port, from the same
    address and port; one in was proxied if the proxy dialled it, carrying the client's. The proxy's end may
    have said that it is done while the application has more to say.
    """
    proxies: list[TcpSocket] = []
    others: list[TcpSocket] = []
    for each in found:
        (proxies if each.mark & MARK_MASK == PROXY_MARK else others).append(each)
    accepted = {(each.remote, each.remote_port) for each in proxies if each.local_port == OUTBOUND_PORT}
    dialled = {(each.local, each.local_port, each.remote, each.remote_port) for each in proxies}
    return tuple(
        each
        for each in others
        if each.state in (ESTABLISHED, CLOSE_WAIT)
        and (each.local, each.local_port) not in accepted
        and (each.remote, each.remote_port, each.local, each.local_port) not in dialled
        and not _is_spared(each, capture.exclusions)
    )


def _is_spared(connection: TcpSocket, exclusions: Exclusions) -> bool:
    remote = ip_address(connection.remote)
    ranges = (*exclusions.outbound_ranges, *exclusions.inbound_ranges)
    return (
        connection.remote in PROBE_SOURCES
        or connection.remote_port in exclusions.outbound_ports
        or connection.local_port in exclusions.inbound_ports
        or any(remote in ip_network(each) for each in ranges)
    )


def reset(netns: int, connections: tuple[TcpSocket, ...]) -> int:
    """End *connections*; returns how many were still there to end.

    Raises:
        OSError: the kernel cannot (CONFIG_INET_DIAG_DESTROY) or may not.
    """
    ended = 0
    with NetlinkSocket(netns, NETLINK_SOCK_DIAG) as nl:
        for each in connections:
            with suppress(FileNotFoundError):  # It ended by itself meanwhile.
                nl.run(netlink_diag.destroy(each))
                ended += 1
    return ended


def held_by(inode: int, pids: Iterable[int]) -> bool:
    """Whether one of *pids* holds the socket."""
    return any(_holds(pid, inode) for pid in pids)


def owner(inode: int) -> str:
    """Which process holds the socket, as ``"nginx (pid 71)"``; "" if none that we may look at."""
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if _holds(pid, inode):
            with suppress(OSError):
                return f"{Path(f'/proc/{pid}/comm').read_text().strip()} (pid {pid})"
    return ""


def _holds(pid: int, inode: int) -> bool:
    target = f"socket:[{inode}]"
    with suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # Closed meanwhile.
                if os.readlink(f"/proc/{pid}/fd/{fd}") == target:
                    return True
    return False


def _only_listens(netns: int, nl: NetlinkSocket) -> bool:
    """Whether the namespace has no TCP sockets but listeners, as far as can be told quickly.

    The kernel lists connections by walking its table of all namespaces, where each that has just ended stays
    for a minute: 4 to 20 ms. It counts them for each namespace, and lists listeners from another table.
    """
    with in_netns(netns):
        counted = _in_use("sockstat", "TCP:")
        # Without IPv6 there is no such file.
        of_ipv6 = _in_use("sockstat6", "TCP6:") or 0
    return counted is not None and counted + of_ipv6 == len(nl.dump(netlink_diag.dump_tcp(LISTEN)))


def _in_use(name: str, row: str) -> int | None:
    """The TCP sockets of a family in this thread's namespace, TIME-WAIT left out; None if nobody counts."""
    with suppress(OSError):
        for line in Path("/proc/thread-self/net", name).read_text().splitlines():
            match line.split():
                case [first, "inuse", count, *_] if first == row:
                    return int(count)
    return None


def _sockets(netns: int, *states: int) -> list[TcpSocket]:
    with NetlinkSocket(netns, NETLINK_SOCK_DIAG) as nl:
        return list(map(netlink_diag.decode_socket, nl.dump(netlink_diag.dump_tcp(*states))))


def _stays_inside(connection: TcpSocket) -> bool:
    remote = connection.remote
    return remote == connection.local or remote.startswith("127.") or remote == "::1"
