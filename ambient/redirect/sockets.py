"""The TCP sockets in a pod: which are established, whose the proxy's ports are, and ending the old ones."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

from ambient.engine.netlink import NetlinkSocket
from ambient.redirect.plan import HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT
from ambient.wire import netlink_diag
from ambient.wire.netlink import AF_INET, AF_INET6, NETLINK_SOCK_DIAG
from ambient.wire.netlink_diag import CLOSE_WAIT, ESTABLISHED, LISTEN, TcpSocket

PROXY_PORTS = (OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT)


def listeners(netns: int, ports: tuple[int, ...] = PROXY_PORTS) -> tuple[TcpSocket, ...]:
    """The sockets that listen on *ports* in the namespace."""
    return tuple(each for each in _sockets(netns, LISTEN) if each.local_port in ports)


def established(netns: int) -> tuple[TcpSocket, ...]:
    """Connections to elsewhere that are open; those within the pod are never captured and not counted."""
    return tuple(each for each in _sockets(netns, ESTABLISHED, CLOSE_WAIT) if not _stays_inside(each))


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


def _sockets(netns: int, *states: int) -> list[TcpSocket]:
    with NetlinkSocket(netns, NETLINK_SOCK_DIAG) as nl:
        return [
            netlink_diag.decode_socket(message)
            for family in (AF_INET, AF_INET6)
            for message in nl.dump(netlink_diag.dump_tcp(family, *states))
        ]


def _stays_inside(connection: TcpSocket) -> bool:
    return connection.local == connection.remote or ip_address(connection.remote).is_loopback
