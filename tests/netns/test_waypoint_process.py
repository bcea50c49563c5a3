"""``python -m waypoint`` as the fabric starts it, in both roles, beside a control plane played here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from ambient.engine.netns import in_netns
from ambient.model.mesh import Change, Mesh
from ambient.pki.authority import Authority
from tests.flow.loopback import until
from tests.lab import Host, Lab, in_namespaces
from tests.netns.test_ztunnel_capture import connect
from tests.netns.test_ztunnel_process import Control, workload

READY_PORT = 15021


def start(role: str, pod: Host, theirs: socket.socket, log: Path) -> subprocess.Popen[bytes]:
    """The process, in the pod's network."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AMBIENT")} | {
        "POD_UID": workload(pod).uid,
        "POD_NAME": pod.name,
        "POD_NAMESPACE": "shop",
        "SERVICE_ACCOUNT": pod.name,
        "POD_IP": pod.ip,
        "AMBIENT_CONTROL_FD": str(theirs.fileno()),
        "CONNECTION_TERMINATION_DEADLINE": "1s",
    }
    with in_netns(pod.netns), theirs, log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "waypoint", "--role", role],
            env=environ,
            pass_fds=[theirs.fileno()],
            stderr=output,
            cwd=Path(__file__).parents[2],
        )


async def readiness(pod: Host) -> str:
    """The word on it, once there is any."""
    with trio.fail_after(30):
        while True:
            try:
                stream = await connect(pod, pod.ip, READY_PORT)
            except OSError:
                await trio.sleep(0.02)
                continue
            async with stream:
                await stream.send_all(
                    b"GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                )
                return (b"".join([data async for data in stream])).decode()


@pytest.mark.parametrize("role", ["waypoint", "sidecar"])
@in_namespaces
async def test_control_dies_and_traffic_goes_on(role: str, tmp_path: Path) -> None:
    """What is known is true enough to serve by, as for a ztunnel; and it still leaves when it is told to."""
    lab = Lab()
    pod, log = lab.pod("way"), tmp_path / "log"
    mesh = Mesh()
    mesh.apply(Change(workloads=(workload(pod),)))
    ours, theirs = socket.socketpair()
    process = start(role, pod, theirs, log)
    control = Control(ours, Authority(time.time()))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.run, mesh)
            assert (await readiness(pod)).startswith("HTTP/1.1 200")

            control.stream.socket.shutdown(socket.SHUT_RDWR)

            await until(lambda: "control has gone" in log.read_text())
            assert (await readiness(pod)).startswith("HTTP/1.1 200")
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            await until(lambda: process.poll() is not None)
            assert process.returncode == 0
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        process.wait()
        await control.stream.aclose()
        print(log.read_text())
