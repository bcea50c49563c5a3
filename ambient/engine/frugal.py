"""Memory that start-up needed and nobody needs after it, given back to the kernel.

Floor 2. Imports leave two kinds behind: what the C library's heap has free between its blocks, and pages
of programs and libraries that were read once (relocations, initialisers, and what the kernel mapped around
them). The second kind is read again from the page cache should it be wanted; it is not lost.

Source: malloc_trim(3), madvise(2) MADV_DONTNEED, proc_pid_smaps(5).
"""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

# <sys/mman.h>.
_MADV_DONTNEED = 4
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+ *(.*)")


def release_unused() -> None:
    """Call when start-up is over; without effect where the system has no such thing."""
    libc = ctypes.CDLL(None)
    with suppress(AttributeError):  # Only glibc can.
        libc.malloc_trim(ctypes.c_size_t(0))
    try:
        with open("/proc/self/smaps") as file:
            unchanged = list(unchanged_file_mappings(file))
    except OSError:
        return
    for begin, end in unchanged:
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)


def forget_lookups() -> None:
    """Call before a fork: what Python remembers of attributes of classes is let go.

    It would be let go in the child, one by one: each writes to the reference count of a name, and so makes a
    copy of a page that nobody needs but for that name.
    """
    if sys.version_info < (3, 12):  # Names are not counted any more since then.
        sys._clear_type_cache()


def unchanged_file_mappings(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Begin and end of each mapping of a file that nobody may write and of which no page is a changed copy.

    Pages that the loader has relocated are such copies, although nobody may write there any more: to drop
    these would undo it.
    """
    where: tuple[int, int] | None = None
    for line in smaps:
        if match := _MAPPING.match(line):
            begin, end, rights, path = match.groups()
            is_file = path.startswith("/") and rights in ("r--p", "r-xp")
            where = (int(begin, 16), int(end, 16)) if is_file else None
        elif where is not None and line.startswith("Anonymous:") and line.split()[1] == "0":
            yield where
