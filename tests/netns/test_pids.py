"""A process that sees another /proc than its own PID namespace's, as every daemon of a mesh does."""

from __future__ import annotations

import ctypes
import os

from ambient.redirect.pids import shown_pid
from tests.lab import in_namespaces

CLONE_NEWPID = 0x20000000


@in_namespaces
def test_a_pid_of_our_own_namespace_is_found_in_the_machines_proc() -> None:
    """What SO_PEERCRED says is 1; what /proc and people know is another number."""
    reader, writer = os.pipe()
    assert ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWPID) == 0
    child = os.fork()
    if child == 0:
        os.write(writer, f"{os.getpid()} {shown_pid(os.getpid())} {shown_pid(4_000_000)}".encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        own, shown, unknown = map(int, pipe.read().split())
    os.waitpid(child, 0)

    assert (own, shown, unknown) == (1, child, 4_000_000)


def test_in_one_namespace_they_are_the_same() -> None:
    """No search where there is nothing to find."""
    assert shown_pid(os.getpid()) == os.getpid()
