"""A table of the legacy iptables as the kernel hands it out, compared without its counters.

Floor 1: sans-IO. There is no generation and no news of a change; but the table itself is a few kilobytes
and costs a system call, so it is the content that is compared.

Source: Linux ``ip_tables.h`` and ``ip6_tables.h`` (``ipt_getinfo``, ``ipt_get_entries``, ``ipt_entry``), in
this machine's byte order.
"""

from __future__ import annotations

import struct

from ambient.errors import RemoteProtocolError
from ambient.wire.netlink import AF_INET, AF_INET6

# IPT_BASE_CTL and IP6T_BASE_CTL are the same number.
SO_GET_INFO, SO_GET_ENTRIES = 64, 65
# What our rules use (``ambient.redirect.iptables_plan``).
TABLES = (b"mangle", b"nat")
# name, valid_hooks, hook_entry[5], underflow[5], num_entries, size.
_INFO = struct.Struct("=32sI5I5III")
INFO_BYTES = _INFO.size
# name, size, and then the entries, which are aligned to 8.
_ENTRIES_HEAD = struct.Struct("=32sIxxxx")
# Of an entry: where the distance to the next one and where the two counters stand. They follow the
# conditions on addresses, which are 84 bytes for IPv4 and 136 for IPv6.
_NEXT = {AF_INET: 90, AF_INET6: 142}
_COUNTERS = {AF_INET: slice(96, 112), AF_INET6: slice(152, 168)}
_NO_COUNTERS = bytes(16)
_U16 = struct.Struct("=H")


def ask_info(table: bytes) -> bytes:
    """What SO_GET_INFO is asked with, and answers in."""
    return _INFO.pack(table, *(0,) * 13)


def read_size(answer: bytes) -> int:
    """How many bytes of entries a table has."""
    size: int = _INFO.unpack(answer)[-1]
    return size


def ask_entries(table: bytes, size: int) -> bytes:
    """What SO_GET_ENTRIES is asked with, and answers in; a table of another size is refused (EAGAIN)."""
    return _ENTRIES_HEAD.pack(table, size) + bytes(size)


def content(answer: bytes, family: int) -> bytes:
    """The entries without what every packet changes: equal bytes mean equal rules.

    Raises:
        RemoteProtocolError: an entry leads nowhere.
    """
    entries = bytearray(answer[_ENTRIES_HEAD.size :])
    counters, next_at = _COUNTERS[family], _NEXT[family]
    start = 0
    while start < len(entries):
        if start + counters.stop > len(entries):
            raise RemoteProtocolError(f"an entry of {len(entries) - start} bytes")
        entries[start + counters.start : start + counters.stop] = _NO_COUNTERS
        (length,) = _U16.unpack_from(entries, start + next_at)
        if length < counters.stop:
            raise RemoteProtocolError(f"an entry says that it has {length} bytes")
        start += length
    return bytes(entries)
