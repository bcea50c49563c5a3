"""``python -m ztunnel.zygote``: a process that has imported all a ztunnel needs, and keeps one in waiting.

Importing takes 0.2 to 0.5 s, a fork 5 ms, or 30 where the machine is busy: so it is made beforehand, and
waits. While they live, the pages of the imports are there once. A zygote has one thread and runs nothing
else, so a fork of it is as good as a fresh process.

    supervisor                                              zygote
      one byte + SCM_RIGHTS [control, ready, go]  -->         --> passed on to the one that waits
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
import select
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import ztunnel.__main__ as program
from ambient.engine.frugal import release_unused
from ambient.engine.privileges import NODE_DAEMON, keep_only

ZYGOTE_FD = "AMBIENT_ZYGOTE_FD"
# What each child is told of the descriptors that came for it, in their order; the last one is not its own.
NAMES = ("AMBIENT_CONTROL_FD", "AMBIENT_READY_FD")
# Longer than any of ours; another number of descriptors is refused.
_ANCILLARY_BYTES = socket.CMSG_SPACE(8 * array.array("i").itemsize)
# From the birth of a ztunnel to the next fork; picked, not measured.
STANDBY_AFTER_SECONDS = 1.0
# prctl(2); what ``ps`` and ``top`` show.
_PR_SET_NAME = 15


class _Child(Exception):
    """Raised in a fork, up to where the zygote's work ends; carries the fork's own socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock


class _Standby:
    """A fork that waits for its descriptors, and ends when nobody can send it any.

    Raises:
        OSError: it could not be made.
    """

    def __init__(self, *, inherited: socket.socket) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self.born = _fork(theirs, (inherited, self._sock))
        except OSError:
            self._sock.close()
            raise
        finally:
            theirs.close()

    def give(self, fds: Sequence[int]) -> None:
        """Let it have what it was made for."""
        self._sock.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])

    def close(self) -> None:
        """Nothing more is to be said."""
        self._sock.close()


def serve(sock: socket.socket) -> bool:
    """Have a fork ready until the supervisor is gone; True in each child, which is to be a ztunnel."""
    try:
        _serve(sock)
        return False
    except _Child as child:
        with child.sock:
            _, ancillary, _, _ = child.sock.recvmsg(1, _ANCILLARY_BYTES)
        fds = _descriptors(ancillary)
        if not fds:
            os._exit(0)
        _become(fds)
        return True


def _serve(sock: socket.socket) -> None:
    standby: _Standby | None = None
    while True:
        # Not right after the last one has gone: that is when its ztunnel needs the processor.
        if standby is None and not select.select([sock], [], [], STANDBY_AFTER_SECONDS)[0]:
            with suppress(OSError):  # Whoever asks is told.
                standby = _Standby(inherited=sock)
        data, ancillary, _, _ = sock.recvmsg(1, _ANCILLARY_BYTES)
        if not data:
            return
        fds = _descriptors(ancillary)
        try:
            if len(fds) != len(NAMES) + 1:
                raise ValueError(f"{len(fds)} descriptors, expected {len(NAMES) + 1}")
            waiting, standby = standby, None
            _answer(sock, _hand_out(waiting, sock, fds))
        except (OSError, ValueError) as exc:
            _answer(sock, {"error": str(exc)})
        finally:
            for fd in fds:
                os.close(fd)


def _hand_out(standby: _Standby | None, sock: socket.socket, fds: Sequence[int]) -> dict[str, int]:
    """The PIDs of the one that waits, or (it may be dead) of another, which has *fds* now."""
    if standby is not None:
        try:
            standby.give(fds)
            return standby.born
        except BrokenPipeError:
            pass
        finally:
            standby.close()
    fresh = _Standby(inherited=sock)
    fresh.give(fds)
    fresh.close()
    return fresh.born


def _fork(own: socket.socket, others: Sequence[socket.socket]) -> dict[str, int]:
    """The PIDs of a new orphan.

    Raises:
        _Child: this is it; it has *own*, and the zygote's *others* no more.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            os.close(reader)
            # /proc is that of the machine: its "self" is the number that people see.
            os.write(writer, f"{os.getpid()} {os.readlink('/proc/self')}".encode())
            os.close(writer)
            for each in others:
                each.close()
            raise _Child(own.dup())
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
    gc.freeze()
    return become() if serve(sock) else 0


if __name__ == "__main__":
    keep_only(NODE_DAEMON)
    sys.exit(main())
