"""The generator and the probe as processes that are asked by a line and answer with one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Self

import trio

from benchmarks.enrolling.fabric import ROOT
from benchmarks.enrolling.flows import STALL_SECONDS
from benchmarks.enrolling.isolation import die_with_parent

# A stalled connection is found after STALL_SECONDS; everything else is faster.
ANSWER_SECONDS = 2 * STALL_SECONDS + 30.0


class Child:
    """One such process; use it as an async context manager."""

    def __init__(
        self, module: str, *arguments: str, fds: Sequence[int] = (), patience: float = ANSWER_SECONDS
    ) -> None:
        self._patience = patience
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            preexec_fn=die_with_parent,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input = trio.lowlevel.FdStream(os.dup(self._process.stdin.fileno()))
        self._output = trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno()))
        self._process.stdin.close()
        self._process.stdout.close()
        self._buffer = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._process.kill()
        self._process.wait()
        with trio.CancelScope(shield=True):
            await self._input.aclose()
            await self._output.aclose()

    async def ready(self) -> None:
        """Wait for the first line of one that begins with "ready".

        Raises:
            EOFError: the process has ended.
        """
        line = await self.read_line()
        assert line == b"ready", line

    async def say(self, line: str) -> None:
        """Send a line."""
        await self._input.send_all(line.encode() + b"\n")

    async def ask(self, line: str) -> Any:
        """Send a line and return its answer.

        Raises:
            trio.TooSlowError: there is none.
            EOFError: the process has ended.
        """
        await self.say(line)
        with trio.fail_after(self._patience):
            return json.loads(await self.read_line())

    async def read_line(self) -> bytes:
        """Return the next line that it says, whenever that is.

        Raises:
            EOFError: the process has ended.
        """
        while b"\n" not in self._buffer:
            data = await self._output.receive_some(65536)
            if not data:
                raise EOFError("the process that was asked has ended")
            self._buffer += data
        answer, _, self._buffer = self._buffer.partition(b"\n")
        return answer
