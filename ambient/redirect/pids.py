"""Process ids as /proc shows them.

A mesh has a PID namespace of its own and the machine's /proc: what the kernel says of a peer on a socket
is a number of the former, what stands in /proc one of the latter, and so is what people see.
"""

from __future__ import annotations

import os
from contextlib import suppress


def shown_pid(pid: int, proc: str = "/proc") -> int:
    """The process *pid* of our own PID namespace, as *proc* numbers it; *pid* itself if it is not found."""
    with suppress(OSError):
        if os.readlink(f"{proc}/self") == str(os.getpid()):
            return pid
    with suppress(OSError):
        ours = os.stat(f"{proc}/self/ns/pid").st_ino
        for name in os.listdir(proc):
            if name.isdigit() and _is(f"{proc}/{name}", pid, ours):
                return int(name)
    return pid


def _is(path: str, pid: int, namespace: int) -> bool:
    with suppress(OSError):
        with open(f"{path}/status", encoding="utf-8", errors="replace") as file:
            numbers = next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])
        return numbers[-1:] == [str(pid)] and os.stat(f"{path}/ns/pid").st_ino == namespace
    return False
