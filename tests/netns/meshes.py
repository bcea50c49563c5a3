"""A mesh for the fabric's own tests: started without the command line, watched from outside."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ambient.engine.blocking import BlockingAdminClient
from ambient.fabric import boot, enter

DEADLINE = 20.0


def pod(name: str, *command: str, **container: Any) -> dict[str, Any]:
    """A Pod with one container of that name."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "test"},
        "spec": {
            "containers": [{"name": name, **({"command": list(command)} if command else {}), **container}]
        },
        "origin": "test:1",
    }


class Mesh:
    """One running mesh."""

    def __init__(self, run_dir: Path, nodes: int = 1, fabric: str = "netns", cni: str = "builtin") -> None:
        self.run_dir = run_dir
        self.started = boot.start(str(run_dir), nodes=nodes, fabric=fabric, cni=cni)
        self.init_pid = self.started.record.init_pid

    def apply(self, *objects: dict[str, Any]) -> None:
        """Apply pods of the namespace ``test`` and wait until they are ready."""
        self.apply_within(DEADLINE, *objects)

    def apply_within(self, timeout: float, *objects: dict[str, Any]) -> None:
        """The same, for those that have little patience."""
        namespace = {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "test"},
            "origin": "test:1",
        }
        with BlockingAdminClient.connect(self.run_dir / "control.sock", DEADLINE) as control:
            control.call("apply", objects=[namespace, *objects])
        names = [f"test/{each['metadata']['name']}" for each in objects]
        with BlockingAdminClient.connect(self.run_dir / "fabric.sock", DEADLINE) as fabric:
            fabric.call("wait_ready", names=names, timeout=timeout)

    def delete(self, *names: str) -> None:
        """Delete pods and wait until they are gone."""
        objects = [pod(name, "true") for name in names]
        with BlockingAdminClient.connect(self.run_dir / "control.sock", DEADLINE) as control:
            control.call("delete", objects=objects)
        wait_until(lambda: not set(names) & set(self.pods()), "deleted pods to be gone")

    def pods(self) -> dict[str, dict[str, Any]]:
        """Name -> what control shows of each pod."""
        with BlockingAdminClient.connect(self.run_dir / "control.sock", DEADLINE) as control:
            found = control.call("get", kind="Pod", namespace="test", name=None)
        return {each["metadata"]["name"]: each for each in found}

    def status(self) -> dict[str, Any]:
        """What the fabric says."""
        with BlockingAdminClient.connect(self.run_dir / "fabric.sock", DEADLINE) as fabric:
            found: dict[str, Any] = fabric.call("status")
        return found

    def ip(self, name: str) -> str:
        """A pod's IPv4 address."""
        return str(self.pods()[name]["status"]["podIP"])

    def pid(self, name: str) -> int:
        """Host PID of a pod's first container."""
        return int(self.pods()[name]["status"]["ambient"]["pid"])

    def run(self, name: str, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command in a pod, as ``ambient exec`` does."""
        argv = enter.command(self.init_pid, self.pid(name), command, **options)
        return _run(argv)

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """See ``wait_until``."""
        wait_until(condition, what)

    def run_outside(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the outer network."""
        return _run(enter.command(self.init_pid, 0, command))


def _run(argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait for *condition*; fail with *what* if it never comes."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"waited {DEADLINE} s for: {what}"
        time.sleep(0.01)


def members(init_pid: int) -> set[int]:
    """Host PIDs of the processes in the mesh of *init_pid*: those in its PID namespace or below."""
    known = {init_pid}
    parents = {int(entry): _parent(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
    while more := {pid for pid, parent in parents.items() if parent in known} - known:
        known |= more
    return known


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0
