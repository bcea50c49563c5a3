"""The admin port as a file: a unix socket in the node's directory, for the command line.

A process in the mesh's own directory needs no network to ask, and no other one can: the directory is its
owner's (0700), and whoever connects must be root or us. The newest of two overlapping ztunnels has the name.
"""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress

from ambient.engine.pages import Routes, serve

log = logging.getLogger("ztunnel")

# People and scripts, not crowds. Picked, not measured.
BACKLOG = 16


async def serve_desk(path: str, routes: Routes) -> None:
    """Answer at *path* until cancelled; without the socket ztunnel does all the rest of its work."""
    try:
        sock = bind(path)
    except OSError as exc:
        log.warning("no admin socket at %s: %s", path, exc)
        return
    mine = os.stat(path)
    try:
        await serve(sock, routes)
    finally:
        with suppress(OSError):
            found = os.stat(path)
            if (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino):
                os.unlink(path)


def bind(path: str) -> socket.socket:
    """A listening socket at *path*, in the place of whatever was there, without a moment of nothing.

    Raises:
        OSError: it cannot be had.
    """
    draft = f"{path}.{os.getpid()}"
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        with suppress(FileNotFoundError):
            os.unlink(draft)
        sock.bind(draft)
        sock.listen(BACKLOG)
        os.replace(draft, path)
    except OSError:
        sock.close()
        raise
    return sock
