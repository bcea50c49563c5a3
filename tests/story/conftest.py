"""A whole mesh for a story: brought up by the CLI as a user would, gone afterwards whatever happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

AMBIENT = [sys.executable, "-m", "ambient.cli.main"]
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True)
class Mesh:
    """The CLI, pointed at one run directory."""

    run_dir: Path
    env: dict[str, str]

    def run(self, *args: str, timeout: float = 90) -> subprocess.CompletedProcess[str]:
        """Run one command and return what it said, whatever its exit code."""
        return subprocess.run(
            [*AMBIENT, *args], env=self.env, capture_output=True, text=True, timeout=timeout, check=False
        )

    def ok(self, *args: str, timeout: float = 90) -> str:
        """Run one command that has to work and return its stdout."""
        done = self.run(*args, timeout=timeout)
        assert done.returncode == 0, f"{args}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *args: str) -> Any:
        """Run one command with ``-o json`` and parse its document."""
        return json.loads(self.ok(*args, "-o", "json"))

    def popen(self, *args: str) -> subprocess.Popen[str]:
        """Start one command in the background."""
        return subprocess.Popen(
            [*AMBIENT, *args], env=self.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def pod(self, namespace: str, prefix: str) -> dict[str, Any]:
        """The first pod whose name starts with *prefix*."""
        items = self.json("get", "pods", "-n", namespace)["items"]
        found = [item for item in items if item["metadata"]["name"].startswith(prefix)]
        assert found, f"no pod {prefix} in {[item['metadata']['name'] for item in items]}"
        pod: dict[str, Any] = found[0]
        return pod

    def name(self, namespace: str, prefix: str) -> str:
        """Its name."""
        return str(self.pod(namespace, prefix)["metadata"]["name"])


def processes_of(run_dir: Path) -> list[str]:
    """Every process of this machine that was started for *run_dir*."""
    needle = f"AMBIENT_RUN_DIR={run_dir}".encode()
    me = str(os.getpid())
    found = []
    for proc in Path("/proc").iterdir():
        if not proc.name.isdigit() or proc.name == me:
            continue
        try:
            environ = (proc / "environ").read_bytes()
            command = (proc / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (proc / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            continue
        if needle in environ.split(b"\0") and state != "Z":
            found.append(f"{proc.name} {command}")
    return found


def wait_until(condition: Callable[[], bool], what: str, deadline: float = 15) -> None:
    """Wait for *condition*; fail with *what* if it never comes."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"waited {deadline} s for: {what}"
        time.sleep(0.02)


def _make(run_dir: Path, rootless: bool) -> Mesh:
    env = {key: value for key, value in os.environ.items() if not key.startswith("AMBIENT_")}
    env["AMBIENT_RUN_DIR"] = str(run_dir)
    if rootless:
        env["AMBIENT_ROOTLESS"] = "1"
    return Mesh(run_dir, env)


@pytest.fixture(params=["rootless", "root"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh that is not up yet, once per way of running; ``clean`` runs whatever happened."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("not root")
    # Unix sockets have short paths; a test's own directory bears its whole name.
    made = _make(tmp_path_factory.mktemp("mesh") / "run", request.param == "rootless")
    try:
        yield made
    finally:
        made.run("clean")
    wait_until(lambda: not processes_of(made.run_dir), "every process of the mesh to be gone")
    assert not made.run_dir.exists(), "the run directory is left"
