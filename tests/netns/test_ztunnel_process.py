"""``python -m ztunnel`` as the fabric starts it: two nodes, a control plane and two agents played here."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ambient.engine.netns import in_netns
from ambient.model.mesh import Change, Mesh
from ambient.model.workload import Protocol, Workload
from ambient.pki.authority import Authority
from ambient.redirect import backend
from ambient.redirect.plan import Capture
from ambient.wire import xds
from tests.flow.loopback import echo, serving, until
from tests.flow.test_ztunnel_agent import Agent
from tests.lab import Host, Lab, in_namespaces
from tests.netns.test_ztunnel_capture import connect


class Control:
    """One connection of a control plane: says what the mesh is, signs what it is asked to."""

    def __init__(self, sock: socket.socket, authority: Authority) -> None:
        sock.setblocking(False)
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self.end = xds.ControlEnd()
        self.signed = 0
        self._authority = authority

    async def run(self, mesh: Mesh) -> None:
        async for data in self.stream:
            for event in self.end.receive_data(data):
                match event:
                    case xds.Greeted():
                        await self.tell(mesh.snapshot())
                    case xds.CertificateAsked(number, identity, csr):
                        issued = self._authority.issue(csr, identity, time.time())
                        self.signed += 1
                        await self.stream.send_all(
                            self.end.certificate(number, issued.chain, issued.roots, issued.not_after)
                        )

    async def tell(self, change: Change) -> None:
        _nonce, data = self.end.update(change)
        await self.stream.send_all(data)

    async def told(self) -> None:
        await until(lambda: not self.end.unacked)


@dataclasses.dataclass
class Ztunnel:
    """A process, and whom it talks to."""

    node: Host
    process: subprocess.Popen[bytes]
    control: Control
    agent: Agent
    log: Path

    async def get(self, port: int, path: str, host: str = "127.0.0.1") -> str:
        """Ask it over HTTP, from its own node."""
        stream = await connect(self.node, host, port)
        async with stream:
            await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            return b"".join([data async for data in stream]).decode()

    async def ready(self) -> str:
        """Its word on readiness; it may have come to the agent before it came to its own ports."""
        with trio.fail_after(15):
            while True:
                try:
                    return await self.get(15021, "/healthz/ready")
                except OSError:
                    await trio.sleep(0.01)

    async def exited(self) -> int:
        with trio.fail_after(15):
            while self.process.poll() is None:  # noqa: ASYNC110 - a child has no event here.
                await trio.sleep(0.01)
        return self.process.returncode


@asynccontextmanager
async def ztunnel(
    path: Path, node: Host, mesh: Mesh, authority: Authority, *, descriptors: int = 0, **environment: str
) -> AsyncIterator[Ztunnel]:
    """One, running; killed at the end if it still does.

    Args:
        descriptors: ``ulimit -n``, 0 for the machine's.
    """
    ours, theirs = socket.socketpair()
    agent = Agent(path / f"{node.name}.zds")
    await agent.listen()
    log = path / f"{node.name}.log"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("AMBIENT")} | {
        "NODE_NAME": node.name,
        "AMBIENT_CONTROL_FD": str(theirs.fileno()),
        "INPOD_UDS": str(path / f"{node.name}.zds"),
        "CONNECTION_TERMINATION_DEADLINE": "10s",
        "SSLKEYLOGFILE": str(path / "secrets"),
        **environment,
    }
    limit = ["sh", "-c", f'ulimit -n {descriptors}; exec "$0" "$@"'] if descriptors else []
    with in_netns(node.netns), theirs, log.open("wb") as output:
        process = subprocess.Popen(  # noqa: ASYNC220 - it must start in this thread's namespace.
            [*limit, sys.executable, "-m", "ztunnel"],
            env=environ,
            pass_fds=[theirs.fileno()],
            stderr=output,
            cwd=Path(__file__).parents[2],
        )
    made = Ztunnel(node, process, Control(ours, authority), agent, log)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.control.run, mesh)
            with trio.fail_after(15):
                await agent.accept()
            yield made
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        process.wait()
        agent.close()
        agent.let_go()
        await made.control.stream.aclose()
        print(log.read_text())


def workload(pod: Host) -> Workload:
    return Workload(
        uid=f"Kubernetes//Pod/shop/{pod.name}#1",
        name=pod.name,
        namespace="shop",
        service_account=pod.name,
        addresses=(pod.ip, pod.ip6),
    )


@in_namespaces
async def test_two_processes_carry_a_connection_and_leave_politely(tmp_path: Path) -> None:
    """Everything together, as in a mesh: enrollment, both families, metrics, dumps, SIGTERM."""
    lab = Lab()
    pods = lab.pod("web"), lab.pod("api", node=2)
    web, api = (workload(pod) for pod in pods)
    mesh, authority = Mesh(), Authority(time.time())
    mesh.apply(Change(workloads=(web, api)))
    async with (
        ztunnel(tmp_path, lab.node(1), mesh, authority) as first,
        ztunnel(tmp_path, lab.node(2), mesh, authority) as second,
    ):
        for each, pod, known in ((first, pods[0], web), (second, pods[1], api)):
            assert "workload proxy manager" in await each.ready()
            assert await each.agent.add(known, pod.netns) == ""
            assert await each.agent.snapshot_sent() == ""
            assert (await each.ready()).endswith("ready\n")
            backend.install(pod.netns, Capture())
        enrolled = tuple(dataclasses.replace(each, protocol=Protocol.HBONE) for each in (web, api))
        for each in (first, second):
            await each.control.tell(Change(workloads=enrolled))
        for each in (first, second):
            await each.control.told()

        async with serving(pods[1].listen(8080), echo) as peers:
            for ip, source in ((pods[1].ip, pods[0].ip), (pods[1].ip6, pods[0].ip6)):
                stream = await connect(pods[0], ip, 8080)
                await stream.send_all(b"hello")
                assert await stream.receive_some() == b"hello"
                await stream.aclose()
                assert peers.pop()[0] == source
            for each, reporter in ((first, "source"), (second, "destination")):
                text = await each.get(15020, "/metrics", each.node.ip)
                assert f'istio_tcp_connections_opened_total{{reporter="{reporter}"' in text
                assert 'connection_security_policy="mutual_tls"' in text
                dump = await each.get(15000, "/config_dump")
                assert '"certificates"' in dump
                assert "PRIVATE" not in dump
            # Control dies: what is known is enough to go on.
            first.control.stream.socket.shutdown(socket.SHUT_RDWR)
            live = await connect(pods[0], pods[1].ip, 8080)
            await live.send_all(b"live")
            assert await live.receive_some() == b"live"
            second.process.send_signal(signal.SIGTERM)
            await until(lambda: "draining, at most 10 s" in second.log.read_text())
            await trio.sleep(0.5)  # Not luck: well within those seconds, and well after its GOAWAYs.
            await live.send_all(b"still")
            assert await live.receive_some() == b"still"
            await live.aclose()
            assert await second.exited() == 0
            first.process.send_signal(signal.SIGTERM)
            assert await first.exited() == 0
    inbound = [line for line in second.log.read_text().splitlines() if "\taccess\t" in line]
    assert len(inbound) == 3
    assert 'src.identity="spiffe://cluster.local/ns/shop/sa/web"' in inbound[0]
    assert f"src.addr={pods[0].ip}:" in inbound[0]
    assert "control has gone" in first.log.read_text()
    assert not (tmp_path / "secrets").exists()
