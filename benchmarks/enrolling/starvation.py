"""Taking the CPU away: processes that compute and do nothing else, for as long as a block lasts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.enrolling.isolation import die_with_parent

# Of their lives, should nobody end them. Picked.
LONGEST_SECONDS = 3600
_BURN = f"import time\nend = time.monotonic() + {LONGEST_SECONDS}\nwhile time.monotonic() < end: pass"


@contextmanager
def starved(number: int) -> Iterator[None]:
    """With *number* of them, whose priority is everybody's."""
    burners = [
        subprocess.Popen([sys.executable, "-S", "-c", _BURN], preexec_fn=die_with_parent)
        for _ in range(number)
    ]
    try:
        yield
    finally:
        for each in burners:
            each.kill()
        for each in burners:
            each.wait()
