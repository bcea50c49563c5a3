"""The ports that ztunnel has in the node itself: admin, metrics, readiness.

They belong to the newest ztunnel. While an older one, or the agent for it, still holds a port, it cannot
be bound: then the agent's word is waited for, which passes the very socket, so that no scrape and no probe
is refused in between.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Mapping

import trio

from ambient.engine.netns import listen_in

log = logging.getLogger("ztunnel")

# A port that somebody else has is tried again that often; traffic is served meanwhile. Picked.
RETRY_SECONDS = 1.0


class OwnPorts:
    """Listeners of the node's own, bound or inherited.

    Args:
        hosts: Port -> the address to listen on, "" for all.
    """

    def __init__(self, hosts: Mapping[int, str]) -> None:
        self._hosts = dict(hosts)
        self._sockets: dict[int, socket.socket] = {}
        self._given = trio.Event()
        self._complained: set[int] = set()

    async def listener(self, port: int) -> socket.socket:
        """The listener on *port*, when there is one; whoever serves it closes it."""
        while port not in self._sockets:
            given = self._given
            if not self._bind(port):
                with trio.move_on_after(RETRY_SECONDS) as patience:
                    await given.wait()
                if patience.cancelled_caught and port not in self._complained:
                    self._complained.add(port)
                    log.error("port %d of the node is taken, trying again", port)
        return self._sockets[port]

    def give(self, sockets: Mapping[int, socket.socket]) -> None:
        """Take over *sockets* of an earlier process; those we have no use for are closed."""
        for port, sock in sockets.items():
            if port in self._hosts and port not in self._sockets:
                self._sockets[port] = sock
            else:
                sock.close()
        self._given.set()
        self._given = trio.Event()

    def descriptors(self) -> list[tuple[int, int]]:
        """(port, descriptor) of each listener we have."""
        return [(port, sock.fileno()) for port, sock in self._sockets.items() if sock.fileno() >= 0]

    def release(self) -> None:
        """They are another process's from now on."""
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    def _bind(self, port: int) -> bool:
        try:
            self._sockets[port] = listen_in(None, port, host=self._hosts[port])
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                raise
            return False
        return True
