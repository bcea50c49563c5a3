"""What a process has cost so far: CPU to the nanosecond, memory as its fair share.

Floor 5. By host PID, without privilege, and right for threads that have ended, which summing
``task/*/schedstat`` is not.

Source: clock_getcpuclockid(3) for the clock's number, proc(5) for smaps_rollup.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# glibc's clock_getcpuclockid: CPUCLOCK_SCHED, whole process.
_CPUCLOCK_SCHED = 2
_KIB_FIELD = re.compile(rb"^(Pss|Rss):\s+(\d+) kB", re.MULTILINE)
_THREADS = re.compile(rb"^Threads:\s+(\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory: *pss_bytes* counts a page shared by n processes as one n-th of it."""

    pss_bytes: int
    rss_bytes: int


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of *pid*, ended ones included, user and system.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED)
    except OSError as exc:
        # The kernel says EINVAL for a PID nobody has.
        raise ProcessLookupError(f"no process {pid}") from exc


def memory(pid: int, proc: Path = Path("/proc")) -> Memory:
    """Memory of *pid* now; reading it walks the page tables, so never inside the measured window."""
    text = (proc / str(pid) / "smaps_rollup").read_bytes()
    found = {name: int(number) * 1024 for name, number in _KIB_FIELD.findall(text)}
    return Memory(found.get(b"Pss", 0), found.get(b"Rss", 0))


def total(parts: Iterable[Memory]) -> Memory:
    """Of several processes together; only the fair share adds up, so the resident sum counts pages twice."""
    pss, rss = zip(*((one.pss_bytes, one.rss_bytes) for one in parts), strict=True)
    return Memory(sum(pss), sum(rss))


def threads(pid: int, proc: Path = Path("/proc")) -> int:
    """How many threads *pid* has."""
    found = _THREADS.search((proc / str(pid) / "status").read_bytes())
    return int(found.group(1)) if found else 0
