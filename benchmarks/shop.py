"""A small mesh for benchmarks that break it: a client on node 1, a server on node 2, both enrolled.

Everything lives in a run directory of its own, and is gone when the block is left.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ambient.engine.blocking import BlockingAdminClient
from ambient.fabric import boot, clean, enter

PORT = 8080
SECONDS = 60.0
KNOCK = str(Path(__file__).with_name("knock.py"))


def _pod(name: str, node: str, *command: str, **container: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "nodeName": node,
            "containers": [{"name": name, "command": list(command), **container}],
        },
        "origin": "benchmark:1",
    }


class Shop:
    """The running mesh."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.init = boot.start(str(run_dir), nodes=2, fabric="netns", timeout=SECONDS).record.init_pid

    def furnish(self) -> None:
        """Pods, and enrollment."""
        probe = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}, "origin": "b:1"}
        pods = [
            _pod("client", "node-1", "sleep", "infinity"),
            _pod("server", "node-2", sys.executable, KNOCK, "serve", str(PORT), readinessProbe=probe),
        ]
        self.control("apply", objects=[namespace, *pods])
        self.fabric("wait_ready", names=["shop/client", "shop/server"], timeout=SECONDS)
        target = {"kind": "namespace", "namespace": "shop", "name": "shop"}
        how = {"mode": "ambient", "engine": "ambient", "existing": "keep", "dry_run": False, "wait": True}
        result = self.control("enroll", targets=[target], timeout=SECONDS, **how)
        if result.get("failed"):
            raise SystemExit(f"cannot enroll: {result}")

    def control(self, method: str, **params: Any) -> Any:
        """Ask control."""
        return self._call("control.sock", method, params)

    def fabric(self, method: str, **params: Any) -> Any:
        """Ask the supervisor."""
        return self._call("fabric.sock", method, params)

    def _call(self, name: str, method: str, params: dict[str, Any]) -> Any:
        with BlockingAdminClient.connect(self.run_dir / name, SECONDS) as client:
            return client.call(method, **params)

    def ztunnel(self, node: str) -> int:
        """Host PID of the node's newest ztunnel, 0 while there is none."""
        return self.process(f"ztunnel/{node}")

    def process(self, name: str) -> int:
        """Host PID of what runs under that name, 0 while nothing does."""
        return next((int(p["pid"]) for p in self.fabric("status")["processes"] if p["name"] == name), 0)

    def kill(self, pid: int) -> tuple[float, float]:
        """SIGKILL it; between when and when it died, for on a busy machine that takes its time."""
        before = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: _is_dead(pid), f"the end of {pid}", 0.001)
        return before, time.monotonic()

    def processes(self) -> list[dict[str, Any]]:
        """All of them."""
        found: list[dict[str, Any]] = self.fabric("status")["processes"]
        return found

    def knock(self, **options: float) -> subprocess.Popen[str]:
        """Start the client; "ready" comes on its standard output."""
        pods = {p["metadata"]["name"]: p["status"] for p in self._pods()}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        program = (sys.executable, KNOCK, "knock", pods["server"]["podIP"], str(PORT), *arguments)
        pid = int(pods["client"]["ambient"]["pid"])
        argv = enter.command(self.init, pid, program, network_only=True)
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, text=True, env=boot.daemon_environment(os.environ)
        )

    def _pods(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.control("get", kind="Pod", namespace="shop", name=None)
        return found


@contextmanager
def shop() -> Iterator[Shop]:
    """One that is up and enrolled."""
    with tempfile.TemporaryDirectory(prefix="ambient-bench-") as folder:
        run_dir = Path(folder, "run")
        try:
            made = Shop(run_dir)
            made.furnish()
            yield made
        finally:
            clean.clean(str(run_dir))


def wait_until_ready(client: subprocess.Popen[str]) -> None:
    """Return when its long streams are open."""
    assert client.stdout is not None
    if client.stdout.readline().strip() != "ready":
        raise SystemExit("the client did not come to run")


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def wait_for(condition: Any, what: str, every: float = 0.02) -> None:
    """Poll; give up after a minute."""
    end = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(every)
