"""How long a process has waited for a CPU: what tells a starved one from one that hangs.

Floor 2. A deadline between two daemons of one machine is there for the one that is dead, frozen or stuck. Who
only has not had its turn is none of these, and the kernel knows (``/proc/PID/schedstat``, second field).
"""

from __future__ import annotations

import os
from contextlib import suppress

from ambient.engine.alarm import NANOSECONDS


def cpu_wait(pid: int | str = "thread-self", proc: str = "/proc") -> float:
    """Seconds that the main thread of *pid* (by default: this one) was ready to run and did not.

    0.0 where the kernel does not say, or the process is gone: then nothing is excused.
    """
    with suppress(OSError, ValueError, IndexError):
        fd = os.open(f"{proc}/{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 100).split()[1]) / NANOSECONDS
        finally:
            os.close(fd)
    return 0.0
