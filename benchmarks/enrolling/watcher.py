"""Says of many pods when each is first captured, seen from outside: a process of its own, like ``probe``.

python -m benchmarks.enrolling.watcher <netns fd>   # an address a line; [address, time] as it is captured
"""

from __future__ import annotations

import json
import os
import sys
import time

from benchmarks.enrolling.probe import PAUSE_SECONDS, is_captured

# Pauses are so many times as long as the asking before them. Picked.
REST = 4


def main() -> None:
    """Ask for every address that is waited for, in turn, until stdin closes."""
    netns = int(sys.argv[1])
    os.set_blocking(0, False)
    waiting: list[str] = []
    buffer = b""
    while (data := _read()) != b"":
        *lines, buffer = (buffer + (data or b"")).split(b"\n")
        waiting += [line.decode() for line in lines]
        started = time.monotonic()
        for address in tuple(waiting):
            if is_captured(netns, address):
                print(json.dumps([address, time.monotonic()]), flush=True)
                waiting.remove(address)
        # However many wait: asking is not to take the CPU from those who are asked about.
        time.sleep(max(PAUSE_SECONDS, REST * (time.monotonic() - started)))


def _read() -> bytes | None:
    try:
        return os.read(0, 65536)
    except BlockingIOError:
        return None


if __name__ == "__main__":
    main()
