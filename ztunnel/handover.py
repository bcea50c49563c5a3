"""What one ztunnel leaves to the next, by way of the agent: listeners, and certificates with their keys.

Whatever we listen on and prove ourselves with, the agent holds too, from the moment we have it. So when we
are killed, new connections wait in the backlog for the next process, and none of them is refused; and that
process can shake hands though nobody signs for it.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Protocol

from ambient.engine.sealed import seal_svid, unseal_svid
from ambient.engine.tls import Svid
from ambient.errors import RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.wire.zds import KeyPassed, ListenersPassed
from ztunnel.own_ports import OwnPorts

log = logging.getLogger("ztunnel")

# Whose listeners those of the node itself are.
NODE = ""


class Keys(Protocol):
    """The part of the certificate cache that keys go through."""

    def inherit(self, svid: Svid) -> None:
        """Start with *svid*."""
        ...

    def held(self, identity: SpiffeId) -> Svid | None:
        """The SVID that is in use."""
        ...


class Handover:
    """What came from an earlier process and is not in use yet, and what is to be held over our end.

    Args:
        own: The node's own ports; None where there are none.
    """

    def __init__(self, keys: Keys, own: OwnPorts | None = None) -> None:
        self._keys = keys
        self._own = own
        self._waiting: dict[str, dict[int, socket.socket]] = {}

    def received(self, event: ListenersPassed | KeyPassed) -> None:
        """Keep what the agent passed until somebody wants it."""
        match event:
            case KeyPassed(fd=fd):
                try:
                    self._keys.inherit(unseal_svid(fd))
                except RemoteProtocolError as exc:
                    log.warning("no use for a certificate of the last process: %s", exc)
                finally:
                    os.close(fd)
            case ListenersPassed(uid, sockets):
                self.discard(uid)
                found = {port: socket.socket(fileno=fd) for port, fd in sockets}
                if uid == NODE and self._own is not None:
                    self._own.give(found)
                else:
                    self._waiting[uid] = found

    def take(self, uid: str) -> dict[int, socket.socket]:
        """The listeners of the workload *uid* that an earlier process left, by port; now the caller's."""
        return self._waiting.pop(uid, {})

    def settle(self) -> None:
        """The snapshot is complete: nobody will ask for what is left."""
        for uid in tuple(self._waiting):
            self.discard(uid)

    def own_listeners(self) -> list[tuple[int, int]]:
        """(port, descriptor) of the node's own listeners."""
        return self._own.descriptors() if self._own is not None else []

    def sealed(self, identity: SpiffeId) -> int | None:
        """A sealed memfd with what proves *identity*, the caller's to close; None if nothing does."""
        svid = self._keys.held(identity)
        if svid is None:
            return None
        try:
            return seal_svid(svid)
        except OSError as exc:
            log.warning("the certificate of %s will not survive this process: %s", identity, exc)
            return None

    def discard(self, uid: str) -> None:
        """Nobody will ask for the listeners of *uid*; without effect if there are none."""
        for sock in self._waiting.pop(uid, {}).values():
            sock.close()
