"""Who may do what in a running mesh: read from the kernel, for every process, in both ways of running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ambient.engine.blocking import BlockingAdminClient
from ambient.engine.privileges import NODE_DAEMON, NOTHING, sidecar
from ambient.fabric import clean
from ambient.fabric.syscalls import CONTAINER_CAPABILITIES
from tests.netns.meshes import DEADLINE, Mesh, members, pod, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.slow]

GATEWAY = {
    "apiVersion": "gateway.networking.k8s.io/v1",
    "kind": "Gateway",
    "metadata": {"name": "waypoint", "namespace": "test"},
    "spec": {
        "gatewayClassName": "istio-waypoint",
        "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
    },
    "origin": "test:1",
}
SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


@pytest.fixture(scope="module", params=["rootless", "root"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh with one of each: agent, ztunnel, control, a waypoint, a sidecar, an application."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("not root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMBIENT_ROOTLESS", "1" if request.param == "rootless" else "0")
        path = tmp_path_factory.mktemp(request.param) / "run"
        try:
            made = Mesh(path)
            made.apply(pod("web", "sleep", "infinity"), pod("side", ports=[{"containerPort": 8080}]))
            with BlockingAdminClient.connect(path / "control.sock", DEADLINE) as control:
                control.call("apply", objects=[GATEWAY])
                target = {"kind": "pod", "namespace": "test", "name": "side"}
                control.call("enroll", targets=[target], mode="sidecar")
                target["name"] = "web"
                done = control.call("enroll", targets=[target], mode="ambient")
            assert done["failed"] == 0, done
            wait_until(lambda: {"waypoint", "sidecar"} <= roles(made).keys(), "waypoint and sidecar")
            yield made
        finally:
            clean.clean(str(path))


def roles(mesh: Mesh) -> dict[str, list[int]]:
    """Role -> host pids."""
    found: dict[str, list[int]] = {}
    for each in mesh.status()["processes"]:
        found.setdefault(each["role"], []).append(each["pid"])
    return found


def status(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def capabilities(pid: int, name: str) -> set[int]:
    mask = int(status(pid)[name], 16)
    return {number for number in range(64) if mask >> number & 1}


@pytest.mark.parametrize(
    ("role", "kept"),
    [
        ("agent", NODE_DAEMON),
        ("ztunnel", NODE_DAEMON),
        ("control", NOTHING),
        ("waypoint", NOTHING),
        ("sidecar", sidecar(os.uname().release)),
    ],
)
def test_a_daemon_has_what_it_needs_and_no_more(mesh: Mesh, role: str, kept: frozenset[int]) -> None:
    """In every set, and in every thread; nothing can be gained by starting a program."""
    pids = roles(mesh)[role]
    assert pids
    for pid in pids:
        assert capabilities(pid, "CapEff") == kept
        assert capabilities(pid, "CapPrm") == kept
        assert capabilities(pid, "CapBnd") <= kept
        assert capabilities(pid, "CapInh") == capabilities(pid, "CapAmb") == set()
        for thread in os.listdir(f"/proc/{pid}/task"):
            assert status(int(f"{thread}"))["NoNewPrivs"] == "1"
            assert capabilities(int(thread), "CapEff") == kept


def test_an_application_has_no_power_over_its_network(mesh: Mesh) -> None:
    """As a container of root at most; as an ordinary user nothing."""
    for pid in roles(mesh)["app"]:
        assert capabilities(pid, "CapEff") <= CONTAINER_CAPABILITIES
        assert not capabilities(pid, "CapEff") & NODE_DAEMON
        assert status(pid)["NoNewPrivs"] == "1"


def test_who_holds_a_pods_namespaces_holds_nothing_else(mesh: Mesh) -> None:
    """The pause process only waits."""
    pauses = [pid for pid in members(mesh.init_pid) if status(pid)["Name"] == "pause"]

    assert len(pauses) >= 2
    assert all(capabilities(pid, "CapPrm") == set() for pid in pauses)


def test_a_pod_cannot_see_the_run_directory(mesh: Mesh) -> None:
    """Sockets there give orders."""
    assert mesh.run("web", "ls", str(mesh.run_dir)).stdout == ""
    assert mesh.run("web", "ls", "-A", f"{mesh.run_dir}/nodes").returncode != 0
