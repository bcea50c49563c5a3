"""One run: the application, the load client, and the pairs of proxies, all gone at its end."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ambient.model.workload import Workload
from benchmarks.bed import mesh
from benchmarks.bed.proxies import ROOT, Envoy, Ours, Pair, stop


class Client:
    """A load client: one command at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def begin(self, do: str, pair: Pair, count: int, seconds: float, *more_pids: int) -> None:
        """Start; ``result`` waits for its end."""
        pids = [*pair.client(), *pair.server(), *more_pids]
        command = {"do": do, "door": pair.door, "count": count, "seconds": seconds, "pids": pids}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        self._process.stdin.flush()

    def result(self) -> dict[str, Any]:
        """What it found."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("the load client ended")
        found: dict[str, Any] = json.loads(line)
        found["cpu"] = {int(pid): seconds for pid, seconds in found["cpu"].items()}
        return found


class Bench:
    """A context; what it starts ends with it, whatever happens."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="ambient-bench-")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._pairs: list[Pair] = []
        self._made = 0

    def __enter__(self) -> Self:
        try:
            self._application = self._spawn("application", mesh.address(0))
            assert self._application.stdout is not None
            self.application = (mesh.address(0), int(self._application.stdout.readline()))
            self._client = self.client()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    @property
    def application_pid(self) -> int:
        """For whoever wants to know how busy it was."""
        return self._application.pid

    def pair(self, kind: type[Ours] | type[Envoy], *, pooled: bool = True) -> Pair:
        """Start a pair; at most one of ours at a time, as the server's ports belong to its address."""
        made = kind(self._fresh_folder(), self.application, mesh.address(self._made), pooled=pooled)
        self._pairs.append(made)
        return made

    def ours(self, crowd: tuple[Workload, ...] = ()) -> Ours:
        """A pair of ours, and who else lives on its nodes."""
        made = Ours(self._fresh_folder(), self.application, mesh.address(self._made), crowd)
        self._pairs.append(made)
        return made

    def _fresh_folder(self) -> Path:
        self._made += 1
        folder = Path(self._folder.name) / str(self._made)
        folder.mkdir()
        return folder

    def drop(self, pair: Pair) -> None:
        """End a pair."""
        self._pairs.remove(pair)
        pair.stop()

    def client(self) -> Client:
        """One more load client, for loads at the same time."""
        return Client(self._spawn("load"))

    def load(self, do: str, pair: Pair, count: int, seconds: float) -> dict[str, Any]:
        """Have the client do something to *pair*; see ``load.py``."""
        self._client.begin(do, pair, count, seconds, self.application_pid)
        return self._client.result()

    def _spawn(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", f"benchmarks.bed.{module}", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self._processes.append(process)
        return process

    def _end(self) -> None:
        for pair in self._pairs:
            pair.stop()
        stop(self._processes)
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()
        self._folder.cleanup()
