"""Z1..Z16 of reference/threats.md: the socket between the node agent and ztunnel, both ends real."""

from __future__ import annotations

import array
import os
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio

from ambient.engine import host
from ambient.engine.reactor import Reactor
from ambient.redirect.zds_server import ZdsServer
from ambient.wire import zds
from tests.flow.loopback import LoopbackMesh, LoopbackNetwork
from tests.flow.test_ztunnel_agent import Agent, followed, namespace, open_fds
from tests.hostile.scene import COVERED
from ztunnel.network import NetnsNetwork

NOBODY = 65534
Meeting = Callable[[LoopbackMesh, Agent, Path], Awaitable[None]]


def number(*names: str) -> Callable[[Any], Any]:
    """Say which rows of the list a test is for."""
    COVERED.update(names)
    return lambda test: test


def meet(directory: Path, meeting: Meeting, **more: Any) -> None:
    """Play *meeting* between an agent by hand and a real follower."""

    async def main(reactor: Reactor) -> None:
        async with followed(reactor, directory / "zds") as (mesh, agent, follower):
            for name, value in more.items():
                setattr(follower, name, value(reactor) if callable(value) else value)
            with trio.fail_after(60):
                await meeting(mesh, agent, directory)

    host.run(main)


async def say(agent: Agent, packet: Any, fds: Sequence[int] = ()) -> str:
    """Send it with descriptors, and return the answer's error."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    agent.connection._open.append(("hostile", ""))
    await agent.sock.sendmsg([packet if isinstance(packet, bytes) else msgpack.packb(packet)], rights)
    return await agent.ack()


def add_of(mesh: LoopbackMesh, name: str = "web", **changes: Any) -> dict[str, Any]:
    """An honest ``add``, but for *changes*."""
    web = mesh.workload(name)
    return {
        "kind": "add",
        "uid": web.uid,
        "name": web.name,
        "namespace": web.namespace,
        "service_account": web.service_account,
        "identity": str(web.identity),
    } | changes


@contextmanager
def nothing_leaks() -> Iterator[None]:
    """As many descriptors after as before."""
    before = open_fds()
    yield
    assert open_fds() <= before


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor of *path*."""
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


async def lives(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
    """The conversation goes on."""
    api = mesh.workload("api")
    assert await agent.add(api, namespace(directory, api)) == ""
    assert api.uid in mesh.proxies.running()


# Packets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 2, 253], ids=["Z3-none", "Z4-two", "Z4-as-many-as-the-kernel-takes"])
@number("Z3", "Z4")
def test_an_add_has_exactly_one_descriptor(tmp_path: Path, count: int) -> None:
    """Refused; whatever came is closed; the stream lives."""

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        with opened(directory) as fd, nothing_leaks():
            error = await say(agent, add_of(mesh), [fd] * count)
            assert f"'add' with {count} descriptors" in error
            assert not mesh.proxies.running()
        await lives(mesh, agent, directory)

    meet(tmp_path, meeting)


@pytest.mark.parametrize("what", ["file", "pipe", "pid-namespace", "host-namespace"])
@number("Z5")
def test_the_descriptor_is_of_a_pods_network_namespace(tmp_path: Path, what: str) -> None:
    """A file, a pipe, another kind of namespace, and worst: the node's own."""

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        reader, writer = os.pipe()
        path = {"pid-namespace": "/proc/self/ns/pid", "host-namespace": "/proc/self/ns/net"}.get(
            what, __file__
        )
        with opened(Path(path)) as fd, nothing_leaks():
            error = await say(agent, add_of(mesh), [reader if what == "pipe" else fd])
            assert error
            assert not mesh.proxies.running()
        os.close(reader)
        os.close(writer)

    meet(tmp_path, meeting, _network=lambda reactor: lambda fd: NetnsNetwork(reactor, fd))


@pytest.mark.parametrize(
    "packet", [{"kind": "del", "uid": "x"}, {"kind": "snapshot_sent"}, {"kind": "retire"}]
)
@number("Z6")
def test_other_requests_have_no_descriptor(tmp_path: Path, packet: dict[str, str]) -> None:
    """It is refused and the descriptor closed."""

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        with opened(directory) as fd, nothing_leaks():
            assert "with 1 descriptors" in await say(agent, packet, [fd])
        await lives(mesh, agent, directory)

    meet(tmp_path, meeting)


@pytest.mark.parametrize(
    "packet", [bytes(5000), b"\xc1", b"\x85\xa4kind", msgpack.packb({"kind": "x" * 4090})]
)
@number("Z7", "Z11")
def test_what_is_cut_or_no_map_ends_the_connection(tmp_path: Path, packet: bytes) -> None:
    """Its descriptors are closed, the pods live on, and the next agent is met."""

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        await lives(mesh, agent, directory)
        running = mesh.proxies.running()
        with opened(directory) as fd, nothing_leaks():
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
            await agent.sock.sendmsg([packet], rights)
            while await agent.sock.recv(5000):
                pass
            agent.sock.close()
            await agent.accept()
        assert mesh.proxies.running() == running

    meet(tmp_path, meeting)


@number("Z8")
def test_an_unknown_request_is_refused_and_the_stream_lives(tmp_path: Path) -> None:
    """A newer agent may know more."""

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        assert "'levitate' is not allowed" in await say(agent, {"kind": "levitate"})
        await lives(mesh, agent, directory)

    meet(tmp_path, meeting)


@pytest.mark.parametrize(
    "uid", ["a\x1b[31mb", "a\nb", "../../etc", "Kubernetes//Pod/../x", "x" * 2000, "", 7, None]
)
@number("Z11")
def test_a_uid_is_a_plain_word(tmp_path: Path, uid: Any) -> None:
    """It stands in log lines and could one day be taken for a path."""

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        with opened(directory) as fd, nothing_leaks():
            assert "'add' lacks a field" in await say(agent, add_of(mesh, uid=uid), [fd])
        assert not mesh.proxies.running()

    meet(tmp_path, meeting)


# Workloads ------------------------------------------------------------------------------------


@number("Z9")
def test_a_second_add_of_a_workload(tmp_path: Path) -> None:
    """In the same namespace it changes nothing."""

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        web = mesh.workload("web")
        fd = namespace(directory, web)
        assert await agent.add(web, fd) == ""
        first = mesh.proxies.all()
        assert await agent.add(web, fd) == ""
        assert mesh.proxies.all() == first

    meet(tmp_path, meeting)  # The other half is test_ztunnel_agent's test_another_namespace_replaces_the_pod.


@number("Z10")
def test_to_remove_what_is_not_there_is_done(tmp_path: Path) -> None:
    """The agent wants it gone, and it is."""

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        assert await agent.delete("nobody") == ""
        assert await agent.wait_drained() == "nobody"

    meet(tmp_path, meeting)


@number("Z12")
def test_a_flood_of_adds_is_answered_in_order(tmp_path: Path) -> None:
    """Ten thousand at once: they wait in the socket, and each has its answer, in its turn."""
    count = 10_000

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        web = mesh.workload("web")
        fd = namespace(directory, web)
        good, bad = msgpack.packb(add_of(mesh)), msgpack.packb(add_of(mesh, identity="nobody"))
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        wrong = {index for index in range(count) if index % 7 == 3}

        async def flood() -> None:
            for index in range(count):
                agent.connection._open.append(("add", str(index)))
                await agent.sock.sendmsg([bad if index in wrong else good], rights)

        with nothing_leaks():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flood)
                failed = set()
                for index in range(count):
                    if await agent.ack():
                        failed.add(index)
                    agent.let_go()
            assert failed == wrong
            assert len(mesh.proxies.running()) == 1
            await agent.delete(web.uid)
            await agent.wait_drained()
        os.close(fd)

    meet(tmp_path, meeting)


@number("Z13")
def test_an_agent_that_dies_while_it_names_takes_nobody_with_it(tmp_path: Path) -> None:
    """Only a whole snapshot says that somebody is gone."""

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        web, api = mesh.workload("web"), mesh.workload("api")
        fds = {each.uid: namespace(directory, each) for each in (web, api)}
        for each in (web, api):
            assert await agent.add(each, fds[each.uid]) == ""
        assert await agent.snapshot_sent() == ""
        for _ in range(2):
            agent.let_go()
            agent.sock.close()
            await agent.accept()
            assert await agent.add(web, fds[web.uid]) == ""
            assert mesh.proxies.running() == {web.uid, api.uid}
        assert await agent.snapshot_sent() == ""
        assert mesh.proxies.running() == {web.uid}

    meet(tmp_path, meeting)


class Gone(LoopbackNetwork):
    """A pod whose namespace ended the moment it was named."""

    def listen(self, port: int) -> socket.socket:
        """Nothing is there any more."""
        raise OSError(19, "No such device")


@number("Z15")
def test_a_namespace_that_is_gone_already(tmp_path: Path) -> None:
    """Refused, and nothing is left of it."""

    async def meeting(mesh: LoopbackMesh, agent: Agent, directory: Path) -> None:
        web = mesh.workload("web")
        fd = namespace(directory, web)
        with nothing_leaks():
            assert "No such device" in await agent.add(web, fd)
            assert not mesh.proxies.running()
            assert mesh.svids.forgotten == [web.identity]

    def network(reactor: Reactor) -> Any:
        def make(fd: int) -> Gone:
            os.close(fd)
            return Gone(reactor, "127.0.0.1", {})

        return make

    meet(tmp_path, meeting, _network=network)


# Who is at the other end ----------------------------------------------------------------------

AS_NOBODY = """
import os, socket, sys
os.setresuid(*[int(sys.argv[3])] * 3)
sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
if sys.argv[2] == "connect":
    sock.connect(sys.argv[1])
    sys.exit(0 if sock.recv(100) == b"" else 1)
sock.bind(sys.argv[1])
sock.listen()
print("listening", flush=True)
sock.settimeout(20)
near, _ = sock.accept()
sys.exit(0 if near.recv(100) == b"" else 1)
"""


@contextmanager
def as_nobody(path: Path, how: str) -> Iterator[subprocess.Popen[bytes]]:
    """Another uid at one end."""
    command = [sys.executable, "-c", AS_NOBODY, str(path), how, str(NOBODY)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


async def no_pods() -> list[Any]:
    """A node without pods."""
    return []


async def ended(process: subprocess.Popen[bytes]) -> int:
    """Its exit code."""
    return await trio.to_thread.run_sync(process.wait)


@needs_root
@number("Z1")
def test_a_ztunnel_of_another_user_is_not_spoken_to(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It would be given namespaces and keys."""

    async def main() -> None:
        path = shared_directory(tmp_path_factory) / "zds"
        async with trio.open_nursery() as nursery:
            await nursery.start(ZdsServer(str(path), no_pods).run)
            os.chmod(path, 0o666)
            with as_nobody(path, "connect") as process:
                assert await ended(process) == 0
            nursery.cancel_scope.cancel()

    trio.run(main)


@needs_root
@number("Z1")
def test_an_agent_of_another_user_is_not_obeyed(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It could have anybody served by anybody."""
    directory = shared_directory(tmp_path_factory)
    os.chmod(directory, 0o777)
    path = directory / "zds"
    with as_nobody(path, "listen") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listening\n"

        async def main(reactor: Reactor) -> None:
            async with followed(reactor, directory / "unused") as (_mesh, _agent, follower):
                follower._path = str(path)
                _agent.close()
                assert await ended(process) == 0

        host.run(main)


def shared_directory(factory: pytest.TempPathFactory) -> Path:
    """One that another user may enter."""
    made = factory.mktemp("shared")
    for each in (made, *made.parents):
        if each in (Path("/tmp"), Path("/")):
            break
        os.chmod(each, 0o755)
    return made


@number("Z2")
def test_a_ztunnel_of_another_version_is_refused(tmp_path: Path) -> None:
    """The connection ends, and the agent goes on listening."""

    async def main() -> None:
        path = tmp_path / "zds"
        async with trio.open_nursery() as nursery:
            await nursery.start(ZdsServer(str(path), no_pods).run)
            for version in (2, 0, "1"):
                with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                    await sock.connect(str(path))
                    await sock.send(msgpack.packb({"kind": "hello", "version": version}))
                    assert await sock.recv(100) == b""
            wire = zds.ZtunnelConnection()
            with trio.socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                await sock.connect(str(path))
                await sock.send(wire.hello())
                assert isinstance(wire.receive_packet(await sock.recv(100)), zds.SnapshotSent)
            nursery.cancel_scope.cancel()

    trio.run(main)


@number("Z14")
def test_a_second_agent_does_not_take_the_socket(tmp_path: Path) -> None:
    """It says so and starts not; when the first is gone, what it left is no hindrance."""

    async def main() -> None:
        path = str(tmp_path / "zds")
        async with trio.open_nursery() as nursery:
            await nursery.start(ZdsServer(path, no_pods).run)
            with pytest.raises(OSError, match="another node agent listens"):
                await ZdsServer(path, no_pods).run()
            nursery.cancel_scope.cancel()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
            left.bind(path)
        async with trio.open_nursery() as nursery:
            await nursery.start(ZdsServer(path, no_pods).run)
            nursery.cancel_scope.cancel()

    trio.run(main)


@pytest.mark.parametrize("what", ["link", "file", "directory-0777", "linked-directory", "foreign-directory"])
@number("Z16")
def test_a_place_that_others_can_change_is_none(tmp_path: Path, what: str) -> None:
    """The agent refuses to start, and removes nothing."""
    path = tmp_path / "here" / "zds"
    path.parent.mkdir(mode=0o700)
    match what:
        case "link":
            (tmp_path / "target").touch()
            path.symlink_to(tmp_path / "target")
        case "file":
            path.touch()
        case "directory-0777":
            os.chmod(path.parent, 0o777)
        case "linked-directory":
            (tmp_path / "link").symlink_to(path.parent)
            path = tmp_path / "link" / "zds"
        case "foreign-directory":
            if os.geteuid():
                pytest.skip("only root can be two users")
            os.chown(path.parent, NOBODY, NOBODY)

    async def main() -> None:
        await ZdsServer(str(path), no_pods).run()

    with pytest.raises(PermissionError):
        trio.run(main)
    assert path.exists() or what in ("directory-0777", "linked-directory", "foreign-directory")
