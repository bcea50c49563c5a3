"""A mesh comes and goes, and leaves nothing, however it ends."""

from __future__ import annotations

import os
import shutil
import signal
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


def test_a_mesh_whose_directory_is_lost_is_found_and_ended(run_dir: Path) -> None:
    """Somebody tidied up /run: no record, and every namespace and process still there."""
    mesh = Mesh(run_dir)
    mesh.apply(pod("web", *SLEEPER))
    everybody = members(mesh.init_pid)
    shutil.rmtree(run_dir)

    assert clean.clean(str(run_dir)).killed == mesh.init_pid
    wait_until(lambda: not any(_runs(pid) for pid in everybody), "every process to end")
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
