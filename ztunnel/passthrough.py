"""Port 15006: connections to the pod that did not come by HBONE.

Nobody has proven anything, so policy sees no identity; STRICT is a policy like any other.
"""

from __future__ import annotations

import socket

from ambient.engine.channel import SocketChannel
from ambient.engine.failure import describe
from ambient.errors import Denied
from ambient.model.policy import Connection, enforce
from ambient.model.record import Direction, Flag
from ambient.model.route import OWN_PORTS
from ztunnel.connection import Closed, ProxiedConnection
from ztunnel.context import Context
from ztunnel.network import Address, Cancellable


class PassthroughConnection(ProxiedConnection):
    """A plaintext connection on its way to the application."""

    __slots__ = ("_dialling", "_downstream")

    direction = Direction.INBOUND

    def __init__(self, context: Context, downstream: SocketChannel, source: Address, target: Address) -> None:
        super().__init__(context, source, target)
        self._downstream = downstream
        self._dialling: Cancellable | None = None

    def begin(self) -> None:
        """Ask policy, then dial the application."""
        me = self.context.me
        if me is None or self._destination[1] in OWN_PORTS:
            self._refuse(
                "unknown workload" if me is None else "attempted recursive call to ourselves", Flag.CONNECT
            )
            return
        self.attribute(
            source=self.context.mesh.workload_by_address(self.source[0], me.node),
            destination=me,
            address=self._destination,
        )
        self.facts = Connection(None, self.source[0], *self._destination)
        try:
            enforce(self.context.mesh.policies_for(me), self.facts)
        except Denied as exc:
            self._refuse(exc.reason, Flag.DENY)
            return
        self._dialling = self.context.network.dial(
            self._destination, self._dialled, source=self.source[0], live=self.context.open
        )

    def give_up(self, reason: Closed) -> None:
        """Reset the client's side."""
        if self._dialling is not None:
            self._dialling.cancel()
        self._downstream.abort()

    def _dialled(self, result: socket.socket | OSError) -> None:
        self._dialling = None
        if isinstance(result, OSError):
            self._refuse(*describe(result))
            return
        self.join(self._downstream, SocketChannel(self.context.reactor, result))

    def _refuse(self, reason: str, flag: Flag) -> None:
        self._downstream.abort()
        self.finish(reason, flag)
