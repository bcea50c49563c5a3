"""Reading a namespace's legacy iptables over two sockets that stay open: some 40 us, whatever stands there.

Floor 2. What ``iptables-legacy-save`` asks the kernel, without the program, which takes 3 to 5 ms a call.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import socket

from ambient.engine.netns import in_netns
from ambient.wire import xtables
from ambient.wire.netlink import AF_INET, AF_INET6

# A table that changes between the question for its size and the one for its content is asked again this
# often; picked, not measured.
ATTEMPTS = 5
# Ours have 3 KiB; a table beyond this is not ours to read once a second. Picked, not measured.
MAX_TABLE_BYTES = 1024 * 1024
_LEVELS = {AF_INET: socket.IPPROTO_IP, AF_INET6: socket.IPPROTO_IPV6}
_NOTHING = (errno.ENOENT, errno.ENOPROTOOPT)

_libc = ctypes.CDLL(None, use_errno=True)


class XtablesWatch:
    """The sockets; close it.

    Args:
        netns: Descriptor of the namespace; not kept.

    Raises:
        OSError: the namespace cannot be entered, or no descriptor is left.
    """

    def __init__(self, netns: int) -> None:
        self._sizes: dict[tuple[int, bytes], int] = {}
        self._sockets: dict[int, socket.socket] = {}
        try:
            with in_netns(netns):
                for family in (AF_INET, AF_INET6):
                    self._sockets[family] = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        except OSError as exc:
            if exc.errno != errno.EAFNOSUPPORT:  # A kernel without IPv6 has no rules for it.
                self.close()
                raise

    def close(self) -> None:
        """Close the sockets; twice is fine."""
        for each in self._sockets.values():
            each.close()

    def digest(self) -> bytes:
        """Of the rules without their counters: equal digests mean equal rules.

        Raises:
            OSError: the kernel does not answer, or the tables change faster than they can be read.
        """
        state = hashlib.blake2b(digest_size=16)
        for family in self._sockets:
            for table in xtables.TABLES:
                state.update(self._content(family, table))
        return state.digest()

    def _content(self, family: int, table: bytes) -> bytes:
        for _ in range(ATTEMPTS):
            try:
                size = self._sizes.get((family, table)) or self._size(family, table)
                ask = xtables.ask_entries(table, size)
                return xtables.content(self._ask(family, xtables.SO_GET_ENTRIES, ask), family)
            except OSError as exc:
                self._sizes.pop((family, table), None)
                if exc.errno in _NOTHING:
                    return b"none"
                if exc.errno != errno.EAGAIN:
                    raise
        raise InterruptedError(f"the table {table.decode()} changes faster than it can be read")

    def _size(self, family: int, table: bytes) -> int:
        size = xtables.read_size(self._ask(family, xtables.SO_GET_INFO, xtables.ask_info(table)))
        if size > MAX_TABLE_BYTES:
            raise OSError(errno.EFBIG, f"the table {table.decode()} has {size} bytes")
        self._sizes[family, table] = size
        return size

    def _ask(self, family: int, option: int, question: bytes) -> bytes:
        # The socket module's getsockopt cannot say what is asked for.
        buffer = ctypes.create_string_buffer(question, len(question))
        length = ctypes.c_uint32(len(question))
        fd = self._sockets[family].fileno()
        if _libc.getsockopt(fd, _LEVELS[family], option, buffer, ctypes.byref(length)):
            code = ctypes.get_errno()
            raise OSError(code, f"reading iptables: {os.strerror(code)}")
        return buffer.raw
