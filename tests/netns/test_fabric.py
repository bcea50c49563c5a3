"""A mesh on real namespaces: pods that are real processes, and nothing left of them."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from ambient.errors import AmbientError
from ambient.fabric import boot, clean
from tests.netns.meshes import Mesh, members, pod, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.slow]

SLEEPER = ("sleep", "infinity")


@pytest.fixture(params=["rootless", "root"])
def run_dir(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A run directory, once per way of running; whatever lives in it is gone afterwards."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("not root")
    monkeypatch.setenv("AMBIENT_ROOTLESS", "1" if request.param == "rootless" else "0")
    path = tmp_path / "run"
    yield path
    clean.clean(str(path))


def test_programs_of_pods_are_real_and_reach_each_other(run_dir: Path) -> None:
    """The point of the fabric: what runs in a pod neither knows nor needs us."""
    mesh = Mesh(run_dir, nodes=2)
    server = (sys.executable, "-m", "http.server", "80")
    mesh.apply(pod("client", *SLEEPER), pod("server", *server, readinessProbe={"tcpSocket": {"port": 80}}))

    fetched = mesh.run(
        "client", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{mesh.ip('server')}/"
    )

    assert fetched.stdout == "200", fetched
    assert mesh.pods()["client"]["status"]["hostIP"] != mesh.pods()["server"]["status"]["hostIP"]


def test_a_pod_is_a_place_of_its_own(run_dir: Path) -> None:
    """Names, processes and the mesh's sockets: what a container promises, as far as we promise it."""
    mesh = Mesh(run_dir)
    mesh.apply(pod("web", *SLEEPER))
    script = (
        f"hostname; ls -A {run_dir}; cat /proc/1/comm; head -1 /etc/resolv.conf; ip link add x type dummy"
    )

    said = mesh.run("web", "sh", "-c", script)

    assert said.stdout.splitlines() == [
        "web",
        "pause",
        "search test.svc.cluster.local svc.cluster.local cluster.local",
    ]
    assert "not permitted" in said.stderr


def test_exec_passes_the_exit_code_on(run_dir: Path) -> None:
    """Scripts build on it; 128 + n for a signal, 127 for what is not there, as shells do."""
    mesh = Mesh(run_dir)
    mesh.apply(pod("web", *SLEEPER))

    codes = [
        mesh.run("web", "sh", "-c", "exit 7").returncode,
        mesh.run("web", "sh", "-c", "kill -9 $$").returncode,
        mesh.run("web", "nonesuch").returncode,
    ]

    assert codes == [7, 137, 127]


def test_entering_a_network_alone_keeps_the_machine_in_sight(run_dir: Path) -> None:
    """A load generator reads files of the machine and speaks from the pod; a capture looks from outside."""
    mesh = Mesh(run_dir)
    mesh.apply(pod("web", *SLEEPER))

    inside = mesh.run("web", "sh", "-c", f"ls {run_dir}; ip -4 -o addr show eth0", network_only=True)
    outside = mesh.run_outside("ip", "-o", "link")

    assert "mesh.json" in inside.stdout
    assert mesh.ip("web") in inside.stdout
    assert " n1@" in outside.stdout


def test_a_program_that_ends_is_started_again(run_dir: Path) -> None:
    """restartPolicy Always; the pod itself stays, with its addresses and its namespaces."""
    mesh = Mesh(run_dir)
    mesh.apply(pod("web", *SLEEPER))
    before = mesh.pods()["web"]["status"]

    os.kill(before["ambient"]["pid"], signal.SIGKILL)
    wait_until(
        lambda: mesh.pods()["web"]["status"]["ambient"]["pid"] not in (0, before["ambient"]["pid"]), "restart"
    )

    after = mesh.pods()["web"]["status"]
    assert after["ambient"]["netns"] == before["ambient"]["netns"]
    assert after["containerStatuses"][0]["restartCount"] == 1


def test_a_pod_whose_namespaces_are_killed_is_made_anew(run_dir: Path) -> None:
    """The pause process is one kill away from everybody; its pod must not be lost for ever."""
    mesh = Mesh(run_dir)
    mesh.apply(pod("web", *SLEEPER))
    before = mesh.pods()["web"]["status"]["ambient"]["netns"]

    os.kill(int(before.split("/")[2]), signal.SIGKILL)
    wait_until(
        lambda: mesh.pods()["web"]["status"]["ambient"]["netns"] not in ("", before), "another namespace"
    )
    wait_until(lambda: mesh.pods()["web"]["status"]["phase"] == "Running", "the pod")

    assert mesh.run("web", "ip", "route", "get", "10.96.0.10").returncode == 0


def test_what_cannot_run_says_why(run_dir: Path) -> None:
    """A typing error in a manifest must not look like a slow machine."""
    mesh = Mesh(run_dir)
    with pytest.raises(AmbientError, match="nonesuch"):
        mesh.apply_within(1.5, pod("web", "nonesuch"))


@pytest.mark.parametrize("victim", ["supervisor", "init"])
def test_nothing_survives_a_kill(run_dir: Path, victim: str) -> None:
    """SIGKILL of either leaves no process; ``clean`` removes the rest, and may be repeated."""
    mesh = Mesh(run_dir)
    mesh.apply(pod("web", *SLEEPER))
    everybody = members(mesh.init_pid)
    supervisor = next(
        pid for pid in everybody if b"fabric.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )

    os.kill(mesh.init_pid if victim == "init" else supervisor, signal.SIGKILL)
    wait_until(lambda: not any(_runs(pid) for pid in everybody), "every process to end")

    assert run_dir.exists()
    assert clean.clean(str(run_dir)).anything
    assert not run_dir.exists()
    assert not clean.clean(str(run_dir)).anything


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_down_leaves_nothing(run_dir: Path) -> None:
    """No process, no file."""
    mesh = Mesh(run_dir)
    mesh.apply(pod("web", *SLEEPER))
    everybody = members(mesh.init_pid)

    assert clean.down(str(run_dir))

    assert not run_dir.exists()
    assert not any(_runs(pid) for pid in everybody)


def test_the_loopback_fabric_runs_builtin_workloads_and_refuses_others(run_dir: Path) -> None:
    """Where namespaces are forbidden something still runs, and says what does not; nothing is left."""
    mesh = Mesh(run_dir, fabric="loopback")
    mesh.apply(pod("builtin", ports=[{"containerPort": 8080}]), pod("web", *SLEEPER))
    everybody = members(mesh.init_pid)

    with urllib.request.urlopen(f"http://{mesh.ip('builtin')}:8080/", timeout=5) as answer:
        assert answer.status == 200
    assert "built-in workloads only" in mesh.started.notes[0]
    assert "'sleep'" in mesh.pods()["web"]["status"]["reason"]
    os.kill(mesh.init_pid, signal.SIGKILL)
    wait_until(lambda: not any(_runs(pid) for pid in everybody), "every process to end")


def test_two_meshes_side_by_side(run_dir: Path) -> None:
    """Same names, same addresses, no contact; and no second one in the same place."""
    first = Mesh(run_dir)
    with pytest.raises(AmbientError, match="already runs"):
        boot.start(str(run_dir))
    other_dir = run_dir.with_name("other")
    try:
        second = Mesh(other_dir)
        for mesh in (first, second):
            mesh.apply(pod("web", *SLEEPER))

        assert first.ip("web") == second.ip("web")
        assert clean.down(str(other_dir))
        assert first.run("web", "true").returncode == 0
    finally:
        clean.clean(str(other_dir))
