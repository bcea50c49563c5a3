"""Sockets in other network namespaces, made without leaving this process.

Floor 2. A socket stays in the namespace in which it was created, so a daemon enters a pod's
namespace for the few microseconds of ``socket()`` and serves it from its own loop ever after.
Nothing here may yield between entering and leaving: ``setns`` belongs to the thread.

Source: setns(2), ip(7), netfilter's SO_ORIGINAL_DST. Python 3.11 has no ``os.setns``: ctypes.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from sys import intern
from typing import Any

CLONE_NEWNET = 0x40000000
# The mark of the proxies' own packets, Istio's 1337: the rules in the pod let it pass.
PROXY_MARK = 0x539
# Linux numbers that the socket module does not name.
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
IPV6_FREEBIND = 78
IP_FREEBIND = 15
SO_ORIGINAL_DST = 80
IP6T_SO_ORIGINAL_DST = 80
# Istio uses 128; a burst of new connections while the loop is busy should wait, not fail.
LISTEN_BACKLOG = 4096
# Addresses whose text is kept and shared: thousands of connections come from few. Picked, not measured.
REMEMBERED_HOSTS = 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)


def open_netns(path: str | Path) -> int:
    """Open a namespace by path, for example ``"/proc/71/ns/net"``; the caller closes the descriptor."""
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def netns_identity(fd: int) -> tuple[int, int]:
    """(device, inode): equal exactly if two descriptors mean one namespace."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


@contextmanager
def in_netns(fd: int | None) -> Iterator[None]:
    """Run the body in the namespace *fd*; no await, no thread switch inside. None: stay here.

    Raises:
        OSError: the namespace cannot be entered. A failure to come back ends the process, because
            every later socket would land in the wrong place.
    """
    if fd is None:
        yield
        return
    home = open_own_netns()
    try:
        _setns(fd)
        try:
            yield
        finally:
            _return_to(home)
    finally:
        os.close(home)


def open_own_netns() -> int:
    """Open the namespace in which this thread is; the caller closes the descriptor."""
    return open_netns("/proc/thread-self/ns/net")


def socket_in(
    fd: int | None,
    family: int,
    kind: int = socket.SOCK_STREAM,
    *,
    mark: int | None = None,
    transparent: bool = False,
    home: int | None = None,
) -> socket.socket:
    """A non-blocking socket that lives in the namespace *fd* (None: this one).

    Args:
        family: ``socket.AF_INET`` or ``AF_INET6``; netlink and the like work too.
        kind: ``socket.SOCK_STREAM`` or another type.
        mark: SO_MARK, or None for none; needs CAP_NET_ADMIN.
        transparent: May bind addresses that are not this namespace's own (needs CAP_NET_ADMIN).
        home: This thread's namespace, for whoever makes many: to open it takes longer than to change it.
    """
    kind |= socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    if fd is None:
        made = socket.socket(family, kind)
    elif home is None:
        with in_netns(fd):
            made = socket.socket(family, kind)
    else:
        _setns(fd)
        try:
            made = socket.socket(family, kind)
        finally:
            _return_to(home)
    try:
        if mark is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        if transparent:
            set_transparent(made)
    except OSError:
        made.close()
        raise
    return made


def set_transparent(sock: socket.socket) -> None:
    """Let *sock* bind and receive foreign addresses, IPv4 and (on an IPv6 socket) both."""
    if sock.family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
    sock.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)


def listen_in(
    fd: int | None,
    port: int,
    *,
    transparent: bool = False,
    v6only: bool = False,
    host: str = "",
    mark: int | None = None,
    backlog: int = LISTEN_BACKLOG,
) -> socket.socket:
    """A non-blocking TCP listener in the namespace *fd*; on both families unless told otherwise.

    Args:
        port: 0 lets the kernel choose.
        host: One address to listen on; "" is every address, dual-stack where IPv6 exists.
    """
    family = _listen_family(host)
    try:
        made = socket_in(fd, family, mark=mark, transparent=transparent)
    except OSError:
        if host or v6only:
            raise
        family = socket.AF_INET  # The kernel has no IPv6.
        made = socket_in(fd, family, mark=mark, transparent=transparent)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        made.bind((host or ("::" if family == socket.AF_INET6 else "0.0.0.0"), port))
        made.listen(backlog)
    except OSError:
        made.close()
        raise
    return made


def plain_address(address: tuple[Any, ...]) -> tuple[str, int]:
    """(canonical ip, port) of a socket address; an IPv4-mapped one becomes IPv4."""
    return _plain_host(address[0]), address[1]


@lru_cache(maxsize=REMEMBERED_HOSTS)
def _plain_host(host: str) -> str:
    # The kernel's own spelling is canonical for IPv4, also where an IPv6 socket shows it mapped.
    plain = host.removeprefix("::ffff:")
    if ":" not in plain and "." in plain:
        return plain
    parsed = ip_address(host.partition("%")[0])
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        parsed = parsed.ipv4_mapped
    return parsed.compressed


def original_destination(sock: socket.socket, peer: tuple[str, int] | None = None) -> tuple[str, int]:
    """Where the peer of an accepted connection wanted to go before redirection.

    Asks conntrack first (REDIRECT); without an entry the local address is the answer (TPROXY, or a
    connection that nobody redirected).

    Args:
        peer: Its other end, where that is known: of the same family, which is not asked for then.
    """
    host, _ = peer or plain_address(sock.getsockname())
    try:
        if ":" in host:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, IP6T_SO_ORIGINAL_DST, 28)
            return IPv6Address(raw[8:24]).compressed, raw[2] << 8 | raw[3]
        raw = sock.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
        return intern(socket.inet_ntop(socket.AF_INET, raw[4:8])), raw[2] << 8 | raw[3]
    except OSError:
        return plain_address(sock.getsockname())


def _listen_family(host: str) -> socket.AddressFamily:
    return socket.AF_INET if host and ":" not in host else socket.AF_INET6


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot enter the network namespace: {os.strerror(code)}")


def _return_to(home: int) -> None:
    try:
        _setns(home)
    except OSError as exc:
        os.write(2, f"cannot return to the own network namespace: {exc}\n".encode())
        os.abort()
