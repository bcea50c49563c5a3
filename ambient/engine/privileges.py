"""Giving up what a daemon does not need, before it hears anybody.

Floor 2, and called once, at the very start of a process: capabilities belong to threads, and those to
come inherit. Who keeps what and why stands in SECURITY.md.

Source: capabilities(7), prctl(2); linux/capability.h, linux/prctl.h.
"""

from __future__ import annotations

import ctypes
import os
import re

CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN = 12, 13, 21
# Entering pods' network namespaces (setns), and in them marked and transparent sockets, rules and routes.
NODE_DAEMON = frozenset({CAP_NET_ADMIN, CAP_SYS_ADMIN})
NOTHING: frozenset[int] = frozenset()

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 23, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4
_VERSION_3 = 0x20080522
_LAST = 63

# From this Linux on SO_MARK may be set by whoever has NET_RAW; IP_TRANSPARENT could be long before.
_MARK_BY_RAW = (5, 17)

_libc = ctypes.CDLL(None, use_errno=True)


def sidecar(release: str) -> frozenset[int]:
    """What marked and transparent sockets in its own pod need: nothing that could change the pod's network.

    Args:
        release: The kernel's, for example ``"6.1.0-18-amd64"``.
    """
    version = re.match(r"(\d+)\.(\d+)", release)
    new = version is not None and tuple(map(int, version.groups())) >= _MARK_BY_RAW
    return frozenset({CAP_NET_RAW if new else CAP_NET_ADMIN})


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Half(ctypes.Structure):
    """32 capabilities."""

    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


def keep_only(kept: frozenset[int]) -> None:
    """Give up, for good, every capability but *kept*; programs that are started later gain none either.

    What was never there is not gained: an ordinary user's process keeps nothing.

    Raises:
        OSError: the kernel did not do it; go no further.
    """
    for number in range(_LAST + 1):
        if number not in kept and _prctl(_PR_CAPBSET_READ, number) == 1:
            # Refused without CAP_SETPCAP: then there is nothing that the bound would have to hold back.
            _prctl(_PR_CAPBSET_DROP, number)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1):
        raise OSError(ctypes.get_errno(), "cannot set NO_NEW_PRIVS")
    _set(_permitted() & sum(1 << number for number in kept))


def _permitted() -> int:
    halves = (_Half * 2)()
    _call(_libc.capget, halves, "read")
    return int(halves[0].permitted) | int(halves[1].permitted) << 32


def _set(mask: int) -> None:
    halves = (_Half * 2)()
    for index, half in enumerate(halves):
        half.effective = half.permitted = mask >> (32 * index) & 0xFFFFFFFF
    _call(_libc.capset, halves, "set")


def _call(function: ctypes._NamedFuncPointer, halves: ctypes.Array[_Half], verb: str) -> None:
    header = _Header(_VERSION_3, 0)
    if function(ctypes.byref(header), ctypes.byref(halves)):
        code = ctypes.get_errno()
        raise OSError(code, f"cannot {verb} capabilities: {os.strerror(code)}")


def _prctl(option: int, value: int) -> int:
    zero = ctypes.c_ulong(0)
    return int(_libc.prctl(ctypes.c_int(option), ctypes.c_ulong(value), zero, zero, zero))
