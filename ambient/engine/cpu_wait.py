"""How long a process has waited for a CPU: what tells a starved one from one that hangs.

Floor 2. A deadline between two daemons of one machine is there for the one that is dead, frozen or stuck. Who
only has not had its turn is none of these, and the kernel knows (``/proc/PID/schedstat``, second field).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

NANOSECONDS = 1e9


def cpu_wait(pid: int | str = "thread-self", proc: str = "/proc") -> float:
    """Seconds that the main thread of *pid* (by default: this one) was ready to run and did not.

    0.0 where the kernel does not say, or the process is gone: then nothing is excused.
    """
    with suppress(OSError, ValueError, IndexError):
        return int(Path(proc, str(pid), "schedstat").read_text("ascii").split()[1]) / NANOSECONDS
    return 0.0
