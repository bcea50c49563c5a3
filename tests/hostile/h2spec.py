"""h2spec against a real :15008: it cannot show a certificate, so mutual TLS is added on its way.

h2spec ──plaintext──► forwarder ──TLS 1.3, SVID, ALPN h2──► :15008 of an enrolled pod
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import trio

from ambient.model.workload import Workload
from tests.flow.loopback import LoopbackMesh
from tests.hostile.peers import client_context

# How long h2spec waits for a reaction before it calls a case failed; it is the tool's own default.
CASE_SECONDS = 2


def find_h2spec() -> str | None:
    """The tool, if this machine has it: on the path, or where ``go install`` puts it."""
    return shutil.which("h2spec") or shutil.which("h2spec", path=str(Path.home() / "go" / "bin"))


async def forward(
    mesh: LoopbackMesh, source: Workload, pod: Workload, *, task_status: trio.TaskStatus[int]
) -> None:
    """Take plaintext connections on a port of loopback and carry each to *pod* over mutual TLS."""
    context = client_context(await mesh.svids.get(source.identity))

    async def carry(near: trio.SocketStream) -> None:
        sock = trio.socket.socket()
        async with near:
            await sock.bind((source.addresses[0], 0))
            await sock.connect((pod.addresses[0], 15008))
            far = trio.SSLStream(trio.SocketStream(sock), context, https_compatible=True)
            async with far, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, near, far, nursery.cancel_scope)
                nursery.start_soon(_pump, far, near, nursery.cancel_scope)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    task_status.started(listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(carry, listeners)


async def _pump(source: trio.abc.Stream, sink: trio.abc.Stream, scope: trio.CancelScope) -> None:
    try:
        while data := await source.receive_some():
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
        pass
    scope.cancel()  # Either end is enough: h2spec only asks whether it was closed.


async def run_h2spec(tool: str, port: int, report: Path) -> dict[str, str]:
    """Every case of strict mode by name, with "passed", "skipped" or what went wrong."""
    command = [tool, "-S", "-h", "127.0.0.1", "-p", str(port), "-o", str(CASE_SECONDS), "-j", str(report)]
    await trio.run_process(command, check=False, stdout=subprocess.DEVNULL)
    return read_report(report.read_text())


def read_report(text: str) -> dict[str, str]:
    """The cases of a JUnit report."""
    found: dict[str, str] = {}
    for case in ElementTree.fromstring(text).iter("testcase"):
        name = f"{case.get('package')} {case.get('classname')}"
        fault = case.find("failure")
        fault = fault if fault is not None else case.find("error")
        if fault is not None:
            found[name] = f"failed: {(fault.text or '').strip()}"
        else:
            found[name] = "passed" if case.find("skipped") is None else "skipped"
    return found
