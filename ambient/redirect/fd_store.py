"""What the agent holds for the node's ztunnel: duplicates of its listeners, and its keys in sealed memfds.

A listener lives while anybody holds it. So when ztunnel is killed, new connections wait in the backlog for
the next one, which gets these very sockets. The agent never accepts, and never reads a key.

Source: the idea is systemd's file descriptor store (sd_pid_notify_with_fds(3)).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from contextlib import suppress

from ambient.engine.sealed import is_sealed
from ambient.model.identity import SpiffeId

# Whose listeners those of the node itself are.
NODE = ""


class FdStore:
    """Descriptors by whom they serve; every one is the store's to close."""

    def __init__(self) -> None:
        self._listeners: dict[str, dict[int, int]] = {}
        self._keys: dict[SpiffeId, int] = {}

    def keep_listeners(self, uid: str, sockets: Iterable[tuple[int, int]]) -> bool:
        """Hold (port, descriptor) pairs in place of what was held of *uid*; False if any takes nothing in."""
        found = dict(sockets)
        if not all(map(_listens, found.values())):
            close_all(found.values())
            return False
        self.drop_listeners(uid)
        self._listeners[uid] = found
        return True

    def keep_key(self, identity: SpiffeId, fd: int) -> bool:
        """Hold *fd* in place of what was held of *identity*; False if it is not sealed."""
        if not is_sealed(fd):
            os.close(fd)
            return False
        self.drop_key(identity)
        self._keys[identity] = fd
        return True

    def listeners(self, uid: str) -> dict[int, int]:
        """Port -> descriptor, still the store's; {} if none are held."""
        return dict(self._listeners.get(uid, {}))

    def inodes(self, uid: str) -> frozenset[int]:
        """What the kernel calls the listeners of *uid*, as in ``/proc/<pid>/fd``."""
        return frozenset(os.fstat(fd).st_ino for fd in self._listeners.get(uid, {}).values())

    def key(self, identity: SpiffeId) -> int | None:
        """The descriptor, still the store's."""
        return self._keys.get(identity)

    def identities(self) -> frozenset[SpiffeId]:
        """Whose keys are held."""
        return frozenset(self._keys)

    def drop_listeners(self, uid: str) -> None:
        """Hold them no more; without effect for a stranger."""
        close_all(self._listeners.pop(uid, {}).values())

    def drop_key(self, identity: SpiffeId) -> None:
        """Hold it no more; without effect for a stranger."""
        if identity in self._keys:
            os.close(self._keys.pop(identity))

    def close(self) -> None:
        """Hold nothing."""
        for uid in tuple(self._listeners):
            self.drop_listeners(uid)
        for identity in tuple(self._keys):
            self.drop_key(identity)


def close_all(fds: Iterable[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def _listens(fd: int) -> bool:
    with suppress(OSError):
        # Told a family, Python does not ask the kernel for it: for a listener none is needed.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=fd)
        try:
            return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1 or _is_bound_datagram(fd)
        finally:
            sock.detach()
    return False


def _is_bound_datagram(fd: int) -> bool:
    """A name server's: bound is all that it can be."""
    sock = socket.socket(fileno=fd)
    try:
        known = sock.type == socket.SOCK_DGRAM and sock.family in (socket.AF_INET, socket.AF_INET6)
        return known and sock.getsockname()[1] != 0
    finally:
        sock.detach()
