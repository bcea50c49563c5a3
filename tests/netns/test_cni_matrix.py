"""The same promises whoever attached the pods: our wiring, real CNI plugins, or a stranger by hand."""

from __future__ import annotations

import os
import re
import shutil
import socket
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ambient.engine.blocking import BlockingAdminClient
from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import open_netns
from ambient.errors import AmbientError
from ambient.fabric import clean
from ambient.redirect import backend, evidence
from ambient.redirect.backend import Standing
from ambient.redirect.backends import choose
from tests.lab import POD_SYSCTLS, Host, make_netns
from tests.netns.meshes import DEADLINE, Mesh, pod, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(240)]

PORT = 8080
# Who dials whom: to the same node, across, and back.
PAIRS = (("client", "near"), ("client", "far"), ("far", "client"))
NODE_OF = {"client": "node-1", "near": "node-1", "far": "node-2"}

plugin = pytest.mark.cni


@pytest.fixture(
    params=[
        "builtin",
        pytest.param("bridge", marks=plugin),
        pytest.param("ptp", marks=plugin),
        pytest.param("macvlan", marks=plugin),
        pytest.param("bridge-rootless", marks=plugin),
        "by-hand",
    ]
)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Three pods on two nodes, attached in one of the ways; nothing of it is left."""
    if os.geteuid() != 0:
        pytest.skip("not root: the test could not enter the pods' namespaces")
    kind = request.param.removesuffix("-rootless")
    monkeypatch.setenv("AMBIENT_ROOTLESS", "0" if kind == request.param else "1")
    with ExitStack() as stack:
        run_dir = tmp_path / "run"
        stack.callback(clean.clean, str(run_dir))
        if kind == "by-hand":
            mesh = Mesh(run_dir, nodes=2)
            mesh.apply()
            yield ByHand(mesh, _made_by_hand(stack))
        else:
            mesh = Mesh(run_dir, nodes=2, cni=kind)
            yield Attached(mesh, _attached(mesh, stack))


@dataclass
class Place:
    """A mesh, and the pods that the test speaks from.

    The test's sockets are made in the pods' namespaces by itself, so that nothing differs between the
    ways of attaching but the attachment.
    """

    mesh: Mesh
    hosts: dict[str, Host]

    def enroll(self, mode: str = "ambient") -> dict[str, Any]:
        """Enroll (or release) all of them."""
        with BlockingAdminClient.connect(self.mesh.run_dir / "control.sock", DEADLINE) as control:
            result: dict[str, Any] = control.call(
                "enroll", targets=self.targets(), mode=mode, timeout=DEADLINE
            )
        return result

    def targets(self) -> list[dict[str, str]]:
        """What is enrolled."""
        return [{"kind": "pod", "namespace": "test", "name": name} for name in self.hosts]

    def tunnelled(self, direction: str) -> set[tuple[str, str]]:
        """(source, destination) of every connection that HBONE carried to an end, by the ztunnels' logs."""
        lines = "".join(
            path.read_text() for path in self.mesh.run_dir.glob("logs/ztunnel-*.log")
        ).splitlines()
        found = (RECORD.search(line) for line in lines if f'direction="{direction}"' in line)
        return {(match[1], match[2]) for match in found if match}


RECORD = re.compile(r"src\.addr=\[?([0-9a-f.:]+?)\]?:\d+ .*dst\.hbone_addr=\[?([0-9a-f.:]+?)\]?:8080 ")


class Attached(Place):
    """Pods of the mesh."""


class ByHand(Place):
    """Namespaces that a stranger made, with a switch of their own; the mesh learns of them by enrolling."""

    def enroll(self, mode: str = "ambient") -> dict[str, Any]:
        """By descriptor, as the command line does."""
        if mode == "ambient":
            root = os.open("/", os.O_RDONLY)
            try:
                with BlockingAdminClient.connect(self.mesh.run_dir / "fabric.sock", DEADLINE) as fabric:
                    for name, host in self.hosts.items():
                        described = {"namespace": "test", "name": name, "node": NODE_OF[name], "pid": 0}
                        path = f"/proc/{os.getpid()}/fd/{host.netns}"
                        fabric.call_with((host.netns, root), "adopt", {**described, "path": path})
            finally:
                os.close(root)
        return super().enroll(mode)


def _attached(mesh: Mesh, stack: ExitStack) -> dict[str, Host]:
    objects = []
    for name, node in NODE_OF.items():
        wanted = pod(name, "sleep", "infinity")
        wanted["spec"]["nodeSelector"] = {"kubernetes.io/hostname": node}
        objects.append(wanted)
    mesh.apply(*objects)
    hosts = {}
    for name, shown in mesh.pods().items():
        assert shown["spec"]["nodeName"] == NODE_OF[name]
        fd = open_netns(shown["status"]["ambient"]["netns"])
        stack.callback(os.close, fd)
        hosts[name] = Host(name, fd, *(each["ip"] for each in shown["status"]["podIPs"]))
    return hosts


def _made_by_hand(stack: ExitStack) -> dict[str, Host]:
    hosts = {}
    for number, name in enumerate(NODE_OF, 1):
        fd = make_netns(POD_SYSCTLS)
        stack.callback(os.close, fd)
        hosts[name] = Host(name, fd, f"192.0.2.{number}", f"2001:db8::{number}")
    connect_by_hand(stack, hosts.values())
    return hosts


def connect_by_hand(stack: ExitStack, hosts: Iterable[Host]) -> None:
    """Give namespaces their addresses: one more is the wire, and routes between the links of the others."""
    forwarding = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
    wire = make_netns({**POD_SYSCTLS, **forwarding})
    stack.callback(os.close, wire)
    for number, host in enumerate(hosts, 1):
        link = f"w{number}"
        with NetlinkSocket(wire) as nl:
            nl.add_veth(link, "anything0", peer_netns=host.netns)
            nl.set_up(link)
            nl.add_address(link, "192.0.2.254/32")
            nl.add_address(link, "fe80::1/64")
            nl.add_route(f"{host.ip}/32", link=link)
            nl.add_route(f"{host.ip6}/128", link=link)
        with NetlinkSocket(host.netns) as nl:
            nl.set_up("anything0")
            nl.add_address("anything0", host.ip)
            nl.add_address("anything0", host.ip6)
            nl.add_route("192.0.2.254/32", link="anything0")
            nl.add_route("0.0.0.0/0", gateway="192.0.2.254", link="anything0")
            nl.add_route("::/0", gateway="fe80::1", link="anything0")


@dataclass
class Talk:
    """One connection, and what its server saw."""

    sock: socket.socket
    source: str
    destination: str
    seen: str

    def says(self, word: bytes) -> bool:
        """Whether *word* comes back, and nothing else."""
        self.sock.sendall(word)
        got = b""
        while len(got) < len(word):
            piece = self.sock.recv(len(word) - len(got))
            if not piece:
                return False
            got += piece
        return got == word


@contextmanager
def echoing(hosts: dict[str, Host]) -> Iterator[None]:
    """An application in every pod: says whom it sees, then echoes."""
    with ExitStack() as stack:
        for host in hosts.values():
            listener = stack.enter_context(host.listen(PORT))
            listener.settimeout(None)
            threading.Thread(target=_accept, args=(listener,), daemon=True).start()
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
        yield


def _accept(listener: socket.socket) -> None:
    while True:
        try:
            sock, peer = listener.accept()
        except OSError:
            return
        threading.Thread(target=_echo, args=(sock, peer[0].removeprefix("::ffff:")), daemon=True).start()


def _echo(sock: socket.socket, peer: str) -> None:
    with sock:
        try:
            sock.sendall(f"{peer}\n".encode())
            while data := sock.recv(65536):
                sock.sendall(data)
        except OSError:
            return


@contextmanager
def strangers(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, *names: str
) -> Iterator[tuple[ByHand, ExitStack]]:
    """A mesh of root's with guests of these *names*, and what is undone before the mesh is cleaned away."""
    if os.geteuid() != 0:
        pytest.skip("not root")
    monkeypatch.setenv("AMBIENT_ROOTLESS", "0")
    with ExitStack() as stack:
        stack.callback(clean.clean, str(run_dir))
        hosts = _made_by_hand(stack)
        place = ByHand(Mesh(run_dir), {name: hosts[name] for name in names})
        place.mesh.apply()
        place.enroll()
        yield place, stack


def dial_all(hosts: dict[str, Host], stack: ExitStack) -> list[Talk]:
    """One connection for every pair and family."""
    talks = []
    for source, destination in PAIRS:
        here, there = hosts[source], hosts[destination]
        for mine, theirs in ((here.ip, there.ip), (here.ip6, there.ip6)):
            sock = stack.enter_context(here.connect(theirs, PORT))
            line = b""
            while not line.endswith(b"\n"):
                piece = sock.recv(1)
                assert piece, f"{source} -> {destination} ({theirs}): closed before the first byte"
                line += piece
            talks.append(Talk(sock, mine, theirs, line.decode().strip()))
    return talks


def test_enrolled_carried_and_released_without_a_loss(place: Place) -> None:
    """Older connections are left alone; new ones are tunnelled, with the client's address, and live on."""
    hosts = place.hosts
    with echoing(hosts), ExitStack() as stack:
        before = dial_all(hosts, stack)

        result = place.enroll()
        assert result["failed"] == 0, result
        assert all(each["enrolled"] for each in result["pods"]), result
        assert all(backend.standing(host.netns) is Standing.CAPTURED for host in hosts.values())
        with ExitStack() as through_only:
            carried = dial_all(hosts, through_only)
            assert all(talk.says(b"older") for talk in before)
            assert all(talk.says(b"tunnelled") for talk in carried)
            assert place.tunnelled("inbound") == set()  # None has ended yet.

            place.enroll("none")
            after = dial_all(hosts, stack)
            for talks in (before, carried, after):
                assert all(talk.says(b"still here") for talk in talks)
                assert [talk.seen for talk in talks] == [talk.source for talk in talks]

        flows = {(talk.source, talk.destination) for talk in carried}
        for direction in ("outbound", "inbound"):
            wait_until(lambda d=direction: place.tunnelled(d) >= flows, f"{direction} records of {flows}")  # type: ignore[misc]
        for name, host in hosts.items():
            gone = f"the rules of {name} to go after its last proxied connection"
            wait_until(lambda h=host: backend.standing(h.netns) is Standing.NONE, gone)  # type: ignore[misc]
        assert all(talk.says(b"to the end") for talk in [*before, *after])


def test_a_stranger_that_vanishes_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells the mesh; and what it leaves to itself keeps no rule when the mesh goes."""
    run_dir = tmp_path / "run"
    with strangers(run_dir, monkeypatch, "client", "near") as (place, stack):
        assert set(place.mesh.pods()) == {"client", "near"}

        gone = place.hosts["near"]
        moved = os.dup(gone.netns)  # The number is what its path was; the namespace lives on unseen.
        stack.callback(os.close, moved)
        os.dup2(os.open("/dev/null", os.O_RDONLY), gone.netns)

        wait_until(lambda: set(place.mesh.pods()) == {"client"}, "the vanished guest to be forgotten")
        wait_until(lambda: backend.standing(moved) is Standing.NONE, "no rule to be left in it")
        assert backend.standing(place.hosts["client"].netns) is Standing.CAPTURED
        assert clean.down(str(run_dir))
        assert backend.standing(place.hosts["client"].netns) is Standing.NONE


def test_whoever_takes_the_place_of_a_stranger_is_enrolled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A namespace is deleted and made anew under its name: the mesh was told of the name."""
    run_dir = tmp_path / "run"
    with strangers(run_dir, monkeypatch, "client", "near") as (place, stack):
        gone, new = place.hosts["near"], make_netns(POD_SYSCTLS)
        stack.callback(os.close, new)
        before = place.mesh.pods()["near"]["status"]["ambient"]["uid"]

        nothing = os.open("/dev/null", os.O_RDONLY)
        os.dup2(nothing, gone.netns)
        os.close(nothing)
        wait_until(lambda: place.mesh.status()["departed"], "the vanished guest to be missed")
        (missed,) = place.mesh.status()["departed"]
        assert (missed["namespace"], missed["name"]) == ("test", "near")
        assert "no other has taken its place" in missed["reason"]

        os.dup2(new, gone.netns)
        wait_until(
            lambda: "it has no address" in place.mesh.status()["departed"][0]["reason"],
            "its place to be taken",
        )
        with NetlinkSocket(new) as nl:
            nl.add_veth("a", "b")
            nl.set_up("a")
            nl.add_address("a", "192.0.2.77/32")

        wait_until(lambda: backend.standing(new) is Standing.CAPTURED, "the successor to be enrolled")
        wait_until(lambda: place.mesh.status()["departed"] == [], "nobody to be missed any more")
        found = place.mesh.pods()["near"]["status"]
        assert found["podIP"] == "192.0.2.77"
        assert found["ambient"]["uid"] != before


def test_a_stranger_outlives_the_loss_of_the_run_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by a file there: that is put back, and at the end no rule is left all the same."""
    run_dir = tmp_path / "run"
    with strangers(run_dir, monkeypatch, "client") as (place, _):
        netns = place.hosts["client"].netns

        shutil.rmtree(run_dir)

        wait_until(lambda: (run_dir / "guests.json").exists(), "the guest to be bound again")
        wait_until(lambda: backend.standing(netns) is Standing.CAPTURED, "it to be captured")
        assert clean.down(str(run_dir))
        assert backend.standing(netns) is Standing.NONE
        assert not evidence.routing_left_over(netns)


@pytest.mark.parametrize("rules", ["netlink", pytest.param("iptables", marks=pytest.mark.iptables)])
def test_a_crashed_mesh_leaves_strangers_to_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rules: str
) -> None:
    """Rules without a proxy behind them refuse everything: ``ambient clean`` takes them away."""
    monkeypatch.setenv("AMBIENT_REDIRECT", rules)
    kernel = choose(rules)
    run_dir = tmp_path / "run"
    with strangers(run_dir, monkeypatch, "client", "near") as (place, _):
        clean.kill(str(run_dir))
        assert kernel.standing(place.hosts["client"].netns) is Standing.CAPTURED

        clean.clean(str(run_dir))

        assert {kernel.standing(host.netns) for host in place.hosts.values()} == {Standing.NONE}


def test_rootless_refuses_strangers_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel would say EPERM, which says nothing."""
    monkeypatch.setenv("AMBIENT_ROOTLESS", "1")
    run_dir = tmp_path / "run"
    own = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        mesh = Mesh(run_dir)
        with (
            BlockingAdminClient.connect(mesh.run_dir / "fabric.sock", DEADLINE) as fabric,
            pytest.raises(Exception, match="start the mesh as root"),
        ):
            fabric.call_with((own, own), "adopt", {"namespace": "default", "pid": 1})
    finally:
        os.close(own)
        clean.clean(str(run_dir))


@pytest.mark.parametrize("place", ["by-hand"], indirect=True)
def test_a_dry_run_of_a_strangers_namespace_leaves_no_trace(place: Place) -> None:
    """Its rules, its open connections and what is in the way, without its being taken in."""
    host = place.hosts["near"]
    with echoing(place.hosts), ExitStack() as stack:
        open_now = [
            talk for talk in dial_all(place.hosts, stack) if host.ip in (talk.source, talk.destination)
        ]
        fine = examined(place.mesh, host)
        with host.listen(15006):
            blocked = examined(place.mesh, host)

        assert (fine["findings"], fine["enrolled"]) == ([], False)
        assert any("redirect to :15001" in line for line in fine["rules"].splitlines())
        assert len(open_now) == 1
        assert any(open_now[0].source in each for each in fine["established_connections"])
        (finding,) = blocked["findings"]
        assert finding["blocks"]
        comm = Path("/proc/self/comm").read_text().strip()
        assert f"port 15006 is taken by {comm} (pid {os.getpid()})" in finding["reason"]
        assert place.mesh.pods() == {}
        assert backend.standing(host.netns) is Standing.NONE


def examined(mesh: Mesh, host: Host) -> dict[str, Any]:
    """What a dry run of ``enroll netns/...`` would show."""
    described = {"namespace": "test", "name": host.name, "node": "node-1", "pid": 0}
    path = f"/proc/{os.getpid()}/fd/{host.netns}"
    root = os.open("/", os.O_RDONLY)
    try:
        with BlockingAdminClient.connect(mesh.run_dir / "fabric.sock", DEADLINE) as fabric:
            found: dict[str, Any] = fabric.call_with(
                (host.netns, root), "examine", {**described, "path": path}
            )
    finally:
        os.close(root)
    return found


def labelled(mesh: Mesh) -> None:
    """Have every pod of the namespace ``test`` in the mesh from its start."""
    labels = {"istio.io/dataplane-mode": "ambient"}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "test", "labels": labels}}
    with BlockingAdminClient.connect(mesh.run_dir / "control.sock", DEADLINE) as control:
        control.call("apply", objects=[{**space, "origin": "test:1"}, pod("web", "sleep", "infinity")])


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run directory; whatever lives in it is gone afterwards."""
    if os.geteuid() != 0:
        monkeypatch.setenv("AMBIENT_ROOTLESS", "1")
    yield tmp_path / "run"
    clean.clean(str(tmp_path / "run"))


@pytest.mark.nft
@pytest.mark.parametrize(
    ("cni", "who"),
    [
        pytest.param("bridge", "ambient-cni ADD: pod test/web: it cannot be captured", marks=plugin),
        ("builtin", "it cannot be captured"),
    ],
    ids=["bridge", "builtin"],
)
def test_a_pod_starts_captured_or_not_at_all(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, cni: str, who: str
) -> None:
    """Its start fails where the capture fails: here the agent has no nft, and was told to use it."""
    monkeypatch.setenv("AMBIENT_REDIRECT", "nft")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    mesh = Mesh(run_dir, cni=cni)
    labelled(mesh)

    def reason() -> str:
        return str(mesh.pods().get("web", {}).get("status", {}).get("reason", ""))

    wait_until(lambda: who in reason(), "the refusal")

    assert "there is no program nft" in reason()
    assert mesh.pods()["web"]["status"]["containerStatuses"] == []


@pytest.mark.parametrize(
    ("cni", "rules"),
    [
        pytest.param("ptp", "netlink", marks=plugin),
        pytest.param("ptp", "nft", marks=[plugin, pytest.mark.nft]),
        pytest.param("ptp", "iptables", marks=[plugin, pytest.mark.iptables]),
        ("builtin", "netlink"),
    ],
)
def test_a_pod_of_a_labelled_namespace_is_captured_before_it_runs(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, cni: str, rules: str
) -> None:
    """By whatever puts the rules in; the agent has said so before the runtime went on."""
    monkeypatch.setenv("AMBIENT_REDIRECT", rules)
    mesh = Mesh(run_dir, cni=cni)
    labelled(mesh)

    wait_until(lambda: mesh.pods().get("web", {}).get("status", {}).get("phase") == "Running", "the pod")

    assert mesh.pods()["web"]["status"]["ambient"]["enrolled"]
    log = (run_dir / "logs/agent-node-1.log").read_text()
    assert log.index("test/web#1 is enrolled") < log.index("CNI ADD test/web: enrolled")


def test_a_missing_plugin_is_said_before_anything_starts(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the package that has it."""
    monkeypatch.setattr("ambient.fabric.cni.find", lambda _plugin, _directories: "")

    with pytest.raises(AmbientError, match="apt install containernetworking-plugins"):
        Mesh(run_dir, cni="macvlan")
    assert not run_dir.exists()
