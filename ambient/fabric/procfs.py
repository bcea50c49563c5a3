"""What /proc says about processes: start times, states, the many names of one process.

Every PID here is a *host* PID: the number in the PID namespace whose /proc is mounted where this
code runs. The mesh's own processes keep that mount, so ``/proc/self`` still tells them their
number outside although ``os.getpid()`` tells the one inside.
"""

from __future__ import annotations

import os
from functools import cache


def host_pid(proc_fd: int | None = None) -> int:
    """This process's number in the PID namespace of the mounted /proc.

    Args:
        proc_fd: A descriptor of that /proc, for a process that no longer sees it by name.
    """
    return int(os.readlink("/proc/self") if proc_fd is None else os.readlink("self", dir_fd=proc_fd))


def _stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (proc_pid_stat(5)); [] if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The second field is the name in parentheses and may itself contain ")".
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def start_ticks(pid: int) -> int:
    """Start time in clock ticks since boot; 0 if there is no such process or it is a zombie."""
    fields = _stat_fields(pid)
    return int(fields[19]) if fields and fields[0] not in "ZX" else 0


def is_alive(pid: int, ticks: int) -> bool:
    """Whether *pid* is still the process that started at *ticks*, and not a zombie."""
    return ticks != 0 and start_ticks(pid) == ticks


@cache
def _boot_time() -> int:
    with open("/proc/stat", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("btime "))


def started(pid: int) -> float:
    """Start time in unix seconds, as exact as a clock tick (10 ms); 0.0 if there is no such process."""
    ticks = start_ticks(pid)
    return _boot_time() + ticks / os.sysconf("SC_CLK_TCK") if ticks else 0.0
