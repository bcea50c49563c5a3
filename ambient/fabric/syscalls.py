"""The Linux calls that Python 3.11 does not offer: namespaces, mounts, capabilities.

Standard library only: ``init`` and the processes it forks use nothing else. Every function here
acts on the calling thread or process, so callers are single-threaded children (``setns`` into a
network namespace alone is also safe in one thread of many).

Source: unshare(2), setns(2), mount(2), prctl(2), capabilities(7).
"""

from __future__ import annotations

import ctypes
import os
import sys
from enum import IntFlag


class Namespace(IntFlag):
    """Flags of clone(2); the values are kernel ABI (linux/sched.h)."""

    MOUNT = 0x00020000
    UTS = 0x04000000
    USER = 0x10000000
    PID = 0x20000000
    NET = 0x40000000


class MountFlag(IntFlag):
    """Flags of mount(2) (linux/mount.h)."""

    READ_ONLY = 0x1
    NO_SUID = 0x2
    NO_DEVICES = 0x4
    NO_EXEC = 0x8
    BIND = 0x1000
    MOVE = 0x2000
    RECURSIVE = 0x4000
    SLAVE = 0x80000


# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
# linux/capability.h: the highest number known when this was written; unknown ones answer EINVAL.
_LAST_CAPABILITY = 63

# What ``ps -o comm`` shows of a mesh's init.
INIT_NAME = "ambient-init"
# _LINUX_CAPABILITY_VERSION_3, and 0: this process.
_CAPABILITY_HEADER = (0x20080522).to_bytes(4, sys.byteorder) + bytes(4)

# What a container of root keeps, by number (linux/capability.h): chown 0, dac_override 1, fowner 3,
# fsetid 4, kill 5, setgid 6, setuid 7, setpcap 8, net_bind_service 10, sys_chroot 18, setfcap 31.
# Docker's default list without net_raw (it may set SO_MARK and so slip past redirection), mknod and
# audit_write.
CONTAINER_CAPABILITIES = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31})

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def unshare(namespaces: Namespace) -> None:
    """Move this process into new namespaces (PID: its next child)."""
    _check(_libc.unshare(ctypes.c_int(namespaces)), f"unshare {namespaces!r}")


def setns(fd: int, namespaces: Namespace) -> None:
    """Enter the namespaces behind *fd*, a namespace file or a pidfd."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(namespaces)), f"setns {namespaces!r}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount *source* on *target*; an empty *kind* or *data* is passed as NULL."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            os.fsencode(kind) if kind else None,
            ctypes.c_ulong(flags),
            os.fsencode(data) if data else None,
        ),
        target,
    )


def unmount(target: str, flags: int = 0) -> None:
    """Unmount what is mounted on *target*."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


def set_hostname(name: str) -> None:
    """Name this UTS namespace."""
    raw = name.encode()
    _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), f"sethostname {name!r}")


def _prctl(option: int, value: int | bytes) -> int:
    argument = ctypes.c_char_p(value) if isinstance(value, bytes) else ctypes.c_ulong(value)
    zero = ctypes.c_ulong(0)
    return int(_libc.prctl(ctypes.c_int(option), argument, zero, zero, zero))


def set_process_name(name: str) -> None:
    """What ``ps -o comm`` shows; the kernel keeps 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode()[:15])


def die_with_parent(number: int) -> None:
    """Have signal *number* sent to this process when its parent's thread ends."""
    _check(_prctl(_PR_SET_PDEATHSIG, number), "prctl PDEATHSIG")


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _check(_prctl(_PR_SET_CHILD_SUBREAPER, 1), "prctl CHILD_SUBREAPER")


def no_new_privileges() -> None:
    """Make setuid bits and file capabilities powerless in this process and its children."""
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "prctl NO_NEW_PRIVS")


def drop_capabilities() -> None:
    """Give up every capability that this process has."""
    _check(_libc.capset(_CAPABILITY_HEADER, bytes(24)), "capset")


def keep_capabilities(kept: frozenset[int]) -> None:
    """Bound what this process's programs may ever hold to *kept*."""
    for number in range(_LAST_CAPABILITY + 1):
        # EINVAL: the kernel knows no such capability; EPERM: without CAP_SETPCAP there is none to bound.
        if number not in kept:
            _prctl(_PR_CAPBSET_DROP, number)
