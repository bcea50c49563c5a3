"""A child process that speaks JSON lines, with a deadline on every word."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ambient.errors import AmbientError

# From SIGTERM to SIGKILL; picked, not measured.
STOP_SECONDS = 2.0
# Far above everything else, below what real-time kernel threads get; picked, not measured.
NICENESS = -15


class ChildTalker:
    """One child; ``close`` it."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self._name = next((part for part in argv if part.startswith("ambient.bench.")), argv[0])
        self._child = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(environment)
        )
        self._buffer = b""
        _hurry(self._child.pid)

    def say(self, line: str) -> None:
        """Send one line."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(line.encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def expect(self, event: str, timeout: float) -> dict[str, Any]:
        """Wait for the next line, which has to be *event*.

        Raises:
            AmbientError: it said something else, ended, or took longer than *timeout*.
        """
        said: dict[str, Any] = json.loads(self._line(time.monotonic() + timeout, event))
        if said.get("event") != event:
            raise AmbientError(f"{self._name} said {said.get('event')!r}, not {event!r}")
        return said

    def _line(self, deadline: float, event: str) -> bytes:
        assert self._child.stdout is not None
        fd = self._child.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select((fd,), (), (), max(0.0, deadline - time.monotonic()))[0]:
                raise AmbientError(f"{self._name}: no {event!r} in time; try a lower --rate")
            piece = os.read(fd, 1 << 20)
            if not piece:
                raise self._ended()
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> AmbientError:
        assert self._child.stderr is not None
        lines = self._child.stderr.read().decode(errors="replace").strip().splitlines()
        return AmbientError(f"{self._name} ended: {lines[-1] if lines else 'without a word'}")

    def close(self) -> None:
        """End it, whatever it does."""
        if self._child.poll() is None:
            self._child.terminate()
        try:
            self._child.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            if pipe is not None:
                _close_quietly(pipe)


def _hurry(pid: int) -> None:
    """Let the instruments run before what they measure, where we may; its own children inherit it."""
    try:
        os.setpriority(os.PRIO_PROCESS, pid, NICENESS)
    except PermissionError:
        pass  # An ordinary user's generator waits its turn; the schedule lag shows how long.


def _close_quietly(pipe: Any) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        pass  # What was left to say has nobody to hear it.
