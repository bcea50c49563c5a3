"""Where a bench keeps a mesh of its own, so that ``clean`` finds it again.

Floor 6. Beside the run directory that is meant, under the name of the process that made it: what such a
process left when it was killed is everybody's to remove, what a living one uses is not.
"""

from __future__ import annotations

import os
from pathlib import Path

_BENCH = "-bench-"


def own_run_dir(where: Path) -> Path:
    """The run directory for a mesh that belongs to this process."""
    return where.with_name(f"{where.name}{_BENCH}{os.getpid()}")


def abandoned(where: Path) -> list[Path]:
    """Run directories of bench's whose processes are gone."""
    if not where.parent.is_dir():
        return []
    found = sorted(where.parent.glob(f"{where.name}{_BENCH}*"))
    return [path for path in found if not _is_alive(path.name.rpartition("-")[2])]


def _is_alive(pid: str) -> bool:
    return pid.isdigit() and Path("/proc", pid).exists()
