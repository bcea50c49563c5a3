"""Descriptors beside bytes, through a real socket."""

from __future__ import annotations

import os
import socket

import pytest

from ambient.engine.rights import descriptors, rights, room


@pytest.mark.parametrize("number", [0, 1, 3])
def test_what_is_given_comes_and_is_inherited_by_nobody(number: int) -> None:
    """As copies: they mean the same file."""
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    with here, there:
        here.sendmsg([b"x"], rights([null] * number))
        data, ancillary, flags, _ = there.recvmsg(1, room(number or 1), socket.MSG_CMSG_CLOEXEC)
    came = descriptors(ancillary)
    try:
        assert (data, len(came), flags & socket.MSG_CTRUNC) == (b"x", number, 0)
        assert all(os.path.sameopenfile(fd, null) and not os.get_inheritable(fd) for fd in came)
    finally:
        for fd in (*came, null):
            os.close(fd)


def test_what_is_cut_or_of_another_kind_is_left_out() -> None:
    """A kernel that had no room for all of it gives whole ones, and perhaps a rest."""
    credentials = (socket.SOL_SOCKET, socket.SCM_CREDENTIALS, bytes(12))
    whole = (7).to_bytes(4, "little")
    assert descriptors([credentials, (socket.SOL_SOCKET, socket.SCM_RIGHTS, whole + b"\1\2")]) == [7]
