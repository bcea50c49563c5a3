"""``python -m ztunnel.zygote``: a process that has imported all a ztunnel needs, and forks one when asked.

Importing takes 0.2 to 0.5 s, a fork a few milliseconds; and while both live, the pages of the imports are
there once. It has one thread and runs nothing else, so a fork of it is as good as a fresh process.

    supervisor                                              zygote
      one byte + SCM_RIGHTS [control, ready, go]  -->
                                    <--  {"pid": inside the mesh, "host_pid": for people}
                                         ztunnel, an orphan from its birth: a child of the mesh's init
      one byte on go  -->  it begins; end of file instead: it ends

The seam before "go" lets init learn whom to report before there is an end to report.
"""

from __future__ import annotations

import array
import ctypes
import gc
import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import ztunnel.__main__ as program
from ambient.engine.frugal import forget_lookups, release_unused
from ambient.engine.privileges import NODE_DAEMON, keep_only

ZYGOTE_FD = "AMBIENT_ZYGOTE_FD"
# What each child is told of the descriptors that came for it, in their order; the last one is not its own.
NAMES = ("AMBIENT_CONTROL_FD", "AMBIENT_READY_FD")
# Longer than any of ours; another number of descriptors is refused.
_ANCILLARY_BYTES = socket.CMSG_SPACE(8 * array.array("i").itemsize)
# prctl(2); what ``ps`` and ``top`` show.
_PR_SET_NAME = 15


def serve(sock: socket.socket) -> bool:
    """Fork whenever asked, until the supervisor is gone; True in each child, which is to be a ztunnel."""
    while True:
        data, ancillary, _, _ = sock.recvmsg(1, _ANCILLARY_BYTES)
        fds = _descriptors(ancillary)
        if not data:
            return False
        try:
            born = _fork(fds)
        except (OSError, ValueError) as exc:
            _answer(sock, {"error": str(exc)})
            born = None
        if born == {}:
            sock.close()
            _become(fds)
            return True
        for fd in fds:
            os.close(fd)
        if born is not None:
            _answer(sock, born)


def _fork(fds: Sequence[int]) -> dict[str, int]:
    """The PIDs of a new orphan; {} in the orphan itself."""
    if len(fds) != len(NAMES) + 1:
        raise ValueError(f"{len(fds)} descriptors, expected {len(NAMES) + 1}")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            os.close(reader)
            # /proc is that of the machine: its "self" is the number that people see.
            os.write(writer, f"{os.getpid()} {os.readlink('/proc/self')}".encode())
            os.close(writer)
            return {}
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        words = pipe.read().split()
    os.waitpid(between, 0)
    if len(words) != 2:
        raise OSError("it ended before it could say its number")
    return {"pid": int(words[0]), "host_pid": int(words[1])}


def _become(fds: Sequence[int]) -> None:
    """Wait for the word, then look like a program that was started with these descriptors."""
    *own, go = fds
    if not os.read(go, 1):
        os._exit(0)
    os.close(go)
    os.setsid()
    del os.environ[ZYGOTE_FD]
    os.environ.update({name: str(fd) for name, fd in zip(NAMES, own, strict=True)})
    ctypes.CDLL(None).prctl(_PR_SET_NAME, b"ztunnel", 0, 0, 0)


def _answer(sock: socket.socket, message: dict[str, int] | dict[str, str]) -> None:
    with suppress(OSError):  # A supervisor that is gone is noticed by reading.
        sock.send(json.dumps(message).encode())


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(fds)


def main(become: Callable[[], int] = program.main) -> int:
    """Be the zygote; in its children, a ztunnel, or whatever *become* is."""
    sock = socket.socket(fileno=int(os.environ[ZYGOTE_FD]))
    sock.set_inheritable(False)
    # What start-up made stays shared: a collection in a child would copy every page of it.
    gc.collect()
    release_unused()
    forget_lookups()
    gc.freeze()
    return become() if serve(sock) else 0


if __name__ == "__main__":
    keep_only(NODE_DAEMON)
    sys.exit(main())
