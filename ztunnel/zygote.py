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

import ctypes
import gc
import json
import os
import select
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import trio

import ztunnel.__main__ as program
from ambient.engine import host
from ambient.engine.frugal import forget_lookups, release_unused
from ambient.engine.privileges import NODE_DAEMON, keep_only
from ambient.engine.reactor import Reactor
from ambient.engine.rights import descriptors, room
from ambient.errors import AmbientError
from ambient.model.identity import DEFAULT_TRUST_DOMAIN, SpiffeId
from ambient.pki.request import new_request
from ztunnel.settings import read_settings

ZYGOTE_FD = "AMBIENT_ZYGOTE_FD"
# What each child is told of the descriptors that came for it, in their order; the last one is not its own.
NAMES = ("AMBIENT_CONTROL_FD", "AMBIENT_READY_FD")
# Longer than any of ours; another number of descriptors is refused.
_ANCILLARY_BYTES = room(8)
# Between the last fork and giving back what it needed: 5 ms of work, which must not take a processor from a
# ztunnel that begins. Picked, not measured.
QUIET_SECONDS = 3.0
# prctl(2); what ``ps`` and ``top`` show.
_PR_SET_NAME = 15


def serve(sock: socket.socket) -> bool:
    """Fork whenever asked, until the supervisor is gone; True in each child, which is to be a ztunnel."""
    has_forked = False
    while True:
        if has_forked and not select.select([sock], [], [], QUIET_SECONDS)[0]:
            release_unused()  # What a fork reads of programs and libraries.
            has_forked = False
        data, ancillary, _, _ = sock.recvmsg(1, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        fds = descriptors(ancillary)
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
            has_forked = True


def _fork(fds: Sequence[int]) -> dict[str, int]:
    """The PIDs of a new orphan; {} in the orphan itself."""
    if len(fds) != len(NAMES) + 1:
        raise ValueError(f"{len(fds)} descriptors, expected {len(NAMES) + 1}")
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        between = os.fork()
        if between == 0 and _is_orphan():
            # /proc is that of the machine: its "self" is the number that people see.
            os.write(writer, f"{os.getpid()} {os.readlink('/proc/self')}".encode())
            os.close(reader)
            return {}
    except OSError:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    with open(reader, "rb") as pipe:
        words = pipe.read().split()
    os.waitpid(between, 0)
    if len(words) != 2:
        raise OSError("it ended before it could say its number")
    return {"pid": int(words[0]), "host_pid": int(words[1])}


def _is_orphan() -> bool:
    """Fork once more: True in the new process, and the one between it and the zygote ends here."""
    try:
        if os.fork() == 0:
            return True
    except OSError:
        pass  # Or there would be two zygotes: the first one says that nobody came.
    os._exit(0)


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


def rehearse() -> None:
    """Do once what each ztunnel begins with.

    What OpenSSL makes at its first key and Python at the first run of a function is there once for the zygote
    and its forks then, and need not be made while somebody waits for a new one. Nothing of it is kept: a key
    is made and let go, and a fork draws other random numbers (OpenSSL and Python see to that).
    """
    # What goes wrong here goes wrong in the ztunnel, too, which says so.
    with suppress(AmbientError):
        read_settings(os.environ)
    host.run(_nothing)
    with suppress(AmbientError):
        new_request(SpiffeId(DEFAULT_TRUST_DOMAIN, "none", "none"))
    for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        ssl.SSLContext(side)


async def _nothing(reactor: Reactor) -> None:
    await trio.lowlevel.checkpoint()


def main(become: Callable[[], int] = program.main) -> int:
    """Be the zygote; in its children, a ztunnel, or whatever *become* is."""
    sock = socket.socket(fileno=int(os.environ[ZYGOTE_FD]))
    sock.set_inheritable(False)
    forget_lookups()
    rehearse()
    # What start-up made stays shared: a collection in a child would copy every page of it.
    gc.collect()
    release_unused()
    gc.freeze()
    return become() if serve(sock) else 0


if __name__ == "__main__":
    keep_only(NODE_DAEMON)
    sys.exit(main())
