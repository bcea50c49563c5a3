"""A running mesh is hurt, and says so or is whole again: real daemons, real pods, as root and without."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ambient.engine.blocking import BlockingAdminClient
from ambient.fabric import clean, enter
from tests.netns.meshes import DEADLINE, Mesh, pod, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(180)]

STRICT = {
    "apiVersion": "security.istio.io/v1",
    "kind": "PeerAuthentication",
    "metadata": {"name": "default", "namespace": "test"},
    "spec": {"mtls": {"mode": "STRICT"}},
    "origin": "test:1",
}


@pytest.fixture(scope="module", params=["rootless", "root"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two enrolled pods."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("not root")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMBIENT_ROOTLESS", "1" if request.param == "rootless" else "0")
        path = tmp_path_factory.mktemp(request.param) / "run"
        try:
            made = Mesh(path)
            made.apply(pod("web", ports=[{"containerPort": 8080}]), pod("client", "sleep", "infinity"))
            enroll(made)
            yield made
        finally:
            clean.clean(str(path))


def call(mesh: Mesh, method: str, **params: Any) -> Any:
    with BlockingAdminClient.connect(mesh.run_dir / "control.sock", DEADLINE) as control:
        return control.call(method, **params)


def enroll(mesh: Mesh) -> None:
    done = call(mesh, "enroll", targets=[{"kind": "namespace", "name": "test"}], mode="ambient")
    assert done["failed"] == 0, done


def state(mesh: Mesh, name: str = "web") -> dict[str, Any]:
    found: dict[str, Any] = mesh.pods()[name]["status"]["ambient"]
    return found


def is_whole(mesh: Mesh) -> bool:
    states = [state(mesh, name) for name in ("web", "client")]
    return all(each["enrolled"] and each["attestation"] == "attested" for each in states)


def until(condition: Callable[[], bool], what: str) -> None:
    wait_until(condition, what)


def daemon(mesh: Mesh, role: str) -> int:
    return next(int(each["pid"]) for each in mesh.status()["processes"] if each["role"] == role)


def fetch(mesh: Mesh) -> str:
    """What the client gets from the server, from inside its pod."""
    url = f"http://{mesh.ip('web')}:8080/"
    code = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=5).status)"
    return mesh.run("client", "python3", "-c", code).stdout.strip()


def in_pods_network(mesh: Mesh, name: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run something with the powers of the mesh's root in a pod's network alone."""
    argv = enter.command(mesh.init_pid, mesh.pid(name), command, network_only=True)
    return subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE, check=False)


@pytest.mark.nft
def test_a_flush_is_repaired_and_counted(mesh: Mesh) -> None:
    """By hand, with nft, in the pod's network; traffic goes on and the status tells."""
    until(lambda: is_whole(mesh), "everybody to be attested")
    before = state(mesh)["repairs"]

    done = in_pods_network(mesh, "web", "nft", "flush", "ruleset")

    assert done.returncode == 0, done.stderr
    until(lambda: bool(state(mesh)["repairs"] > before), "the repair to be told")
    assert is_whole(mesh)
    assert "table inet ambient" in in_pods_network(mesh, "web", "nft", "list", "ruleset").stdout
    assert fetch(mesh) == "200"


def test_agent_and_ztunnel_killed_together(mesh: Mesh) -> None:
    """Neither remembers anything; the kernel does."""
    until(lambda: is_whole(mesh), "everybody to be attested")
    before = daemon(mesh, "agent"), daemon(mesh, "ztunnel")
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    until(
        lambda: {daemon(mesh, "agent"), daemon(mesh, "ztunnel")}.isdisjoint({0, *before}), "both to be back"
    )
    until(lambda: fetch(mesh) == "200", "traffic to flow again")
    until(lambda: is_whole(mesh), "everybody to be attested again")


def test_a_stuck_agent_is_told_from_a_live_one(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped, it vouches for nobody; traffic goes on without it."""
    until(lambda: is_whole(mesh), "everybody to be attested")
    pid = daemon(mesh, "agent")
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: state(mesh)["attestation"] == "unattested", "silence to be noticed")
        assert state(mesh)["enrolled"]
        assert fetch(mesh) == "200"
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: is_whole(mesh), "everybody to be attested again")


def test_daemons_outlive_their_files(mesh: Mesh) -> None:
    """The directory of the node is lost; a ztunnel that starts after that finds its agent all the same."""
    until(lambda: is_whole(mesh), "everybody to be attested")
    shutil.rmtree(mesh.run_dir / "nodes")
    os.kill(daemon(mesh, "ztunnel"), signal.SIGKILL)

    until(lambda: (mesh.run_dir / "nodes/node-1/zds.sock").exists(), "the socket to be back")
    until(lambda: fetch(mesh) == "200", "traffic to flow again")
    until(lambda: is_whole(mesh), "everybody to be attested again")


def test_a_strict_workload_without_a_ztunnel_is_closed_and_not_advertised(mesh: Mesh) -> None:
    """The supervisor itself is stopped, so that no ztunnel comes back; then everything is whole again."""
    call(mesh, "apply", objects=[STRICT])
    until(lambda: is_whole(mesh), "everybody to be attested")
    supervisor = next(
        pid
        for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
        if _is_supervisor(pid, str(mesh.run_dir))
    )
    victim = daemon(mesh, "ztunnel")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(victim, signal.SIGKILL)
        until(lambda: state(mesh)["state"] == "lost", "the loss to be admitted")
        assert "no ztunnel serves this node" in state(mesh)["reason"]
        assert state(mesh)["protocol"] == "TCP"
        rules = in_pods_network(mesh, "web", "nft", "list", "ruleset").stdout
        assert "drop" in rules
    finally:
        os.kill(supervisor, signal.SIGCONT)
    until(lambda: is_whole(mesh), "everybody to be enrolled again")
    until(lambda: fetch(mesh) == "200", "traffic to flow again")


def _is_supervisor(pid: int, run_dir: str) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return b"ambient.fabric.supervisor" in command and f"AMBIENT_RUN_DIR={run_dir}\0".encode() in environment
