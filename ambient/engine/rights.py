"""Descriptors that travel beside bytes over a Unix socket.

Floor 2. Source: unix(7), SCM_RIGHTS; cmsg(3).
"""

from __future__ import annotations

import array
import socket
from collections.abc import Iterable, Sequence

_LEVEL, _KIND = socket.SOL_SOCKET, socket.SCM_RIGHTS
_SIZE = array.array("i").itemsize


def rights(fds: Sequence[int]) -> list[tuple[int, int, array.array[int]]]:
    """What ``sendmsg`` is told to give copies of *fds* away; nothing for none."""
    return [(_LEVEL, _KIND, array.array("i", fds))] if fds else []


def room(number: int) -> int:
    """The bytes of ancillary data in which ``recvmsg`` has room for so many descriptors."""
    return socket.CMSG_SPACE(number * _SIZE)


def descriptors(ancillary: Iterable[tuple[int, int, bytes]]) -> list[int]:
    """Those that came, the caller's to close; without MSG_CMSG_CLOEXEC, programs inherit them."""
    found = array.array("i")
    for level, kind, raw in ancillary:
        if (level, kind) == (_LEVEL, _KIND):
            found.frombytes(raw[: len(raw) - len(raw) % _SIZE])
    return list(found)
