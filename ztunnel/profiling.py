"""Where the loop's thread spends its time: its stack, looked at every 10 ms from another thread.

The loop goes on at its pace; what is measured includes the rest of the process's work for other threads.
The result is in the "folded" form of flame graphs: one line a stack, outermost frame first, and how often it
was seen. Names of functions only: no argument, no value.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from types import FrameType

# pprof's rate, and a bound on how deep a stack is followed.
SAMPLE_SECONDS = 0.01
MAX_DEPTH = 100
# Distinct stacks that are told apart; the rest counts as "other". Picked, not measured.
MAX_STACKS = 5000
# ztunnel's bounds.
MIN_SECONDS, MAX_SECONDS = 1, 300
DEFAULT_SECONDS = 10


def profile(thread: int, seconds: float, stop: threading.Event) -> str:
    """Watch *thread* for so long, or until *stop*; runs in a thread of its own."""
    stacks: Counter[str] = Counter()
    ends = time.monotonic() + seconds
    while time.monotonic() < ends and not stop.wait(SAMPLE_SECONDS):
        frame = sys._current_frames().get(thread)
        if frame is not None:
            stack = folded(frame)
            stacks[stack if stack in stacks or len(stacks) < MAX_STACKS else "other"] += 1
    return "".join(f"{stack} {count}\n" for stack, count in stacks.most_common())


def folded(frame: FrameType) -> str:
    """``outer;inner`` for one stack."""
    names: list[str] = []
    at: FrameType | None = frame
    while at is not None and len(names) < MAX_DEPTH:
        module = str(at.f_globals.get("__name__", "?"))
        names.append(f"{module}.{at.f_code.co_qualname}")
        at = at.f_back
    return ";".join(reversed(names)).replace(" ", "_")
