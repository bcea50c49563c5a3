"""Following the control plane: the distribution wire's daemon end, under trio.

Floor 2.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import trio

from ambient.model.mesh import Mesh  # type: ignore[import-not-found]
from ambient.wire.frames import Frame

CONTROL_FD_VARIABLE = "AMBIENT_CONTROL_FD"


class Follow:
    """Keeps a ``Mesh`` equal to what control says::

        follow = Follow(control_socket())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow.run)
            await follow.synchronised()

    Attributes:
        mesh: Updated in place, between two callbacks of the reactor.
        on_update: Called after each applied update (and after the snapshot as a whole).
        on_frame: kind -> callback for frames of the daemon's own, such as the agent's ``pods``. An exception
            becomes the ``error`` of the ack.
    """

    mesh: Mesh
    on_update: Callable[[], None] | None
    on_frame: dict[str, Callable[[Frame], None]]

    def __init__(self, sock: socket.socket, mesh: Mesh | None = None) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Follow until cancelled.

        Raises:
            Unavailable: control closed the connection (control and its daemons end together).
        """
        raise NotImplementedError

    async def synchronised(self) -> None:
        """Return when the first snapshot is complete."""
        raise NotImplementedError

    def send(self, frame: Frame) -> None:
        """Queue a frame for control, for example ``{"kind": "report", ...}``; order is kept."""
        raise NotImplementedError

    async def certificate(self, identity: str, csr: bytes) -> dict[str, Any]:
        """Have *csr* (DER) signed; returns the ``certificate`` frame, error or not."""
        raise NotImplementedError


def control_socket() -> socket.socket:
    """The socket inherited as ``AMBIENT_CONTROL_FD``.

    Raises:
        ConfigError: the variable is missing or is no descriptor.
    """
    raise NotImplementedError
