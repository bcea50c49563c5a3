"""What a pod finds where the machine is unusual."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ambient.fabric import clean

pytestmark = pytest.mark.netns

UNUSUAL_ETC = """
import os, sys
from ambient.fabric import bootstrap, pause, syscalls
from ambient.fabric.syscalls import MountFlag
bootstrap.make_namespaces(rootless=sys.argv[2] == "rootless")
syscalls.mount("none", "/", flags=MountFlag.RECURSIVE | MountFlag.SLAVE)
syscalls.mount("tmpfs", "/etc", "tmpfs")
os.symlink("/nowhere/resolv.conf", "/etc/resolv.conf")
open("/etc/other", "w").write("kept")
pause.substitute_etc(sys.argv[1])
print(open("/etc/resolv.conf").read(), open("/etc/other").read())
"""

ORDINARY_USER = 12345
UP_AND_DOWN = """
import sys
from pathlib import Path
from ambient.engine.blocking import BlockingAdminClient
from ambient.fabric import boot, clean
started = boot.start(sys.argv[1], nodes=1, fabric="netns")
with BlockingAdminClient.connect(Path(sys.argv[1], "fabric.sock"), 20) as fabric:
    names = [each["name"] for each in fabric.call("status")["processes"] if each["pid"]]
print(started.record.rootless, *sorted(names))
clean.down(sys.argv[1])
"""


@pytest.mark.parametrize("way", [pytest.param("rootless", marks=pytest.mark.rootless), "root"])
def test_a_dangling_resolv_conf_is_replaced_all_the_same(tmp_path: Path, way: str) -> None:
    """systemd's link into /run leads nowhere where /run is another: a bind mount cannot cover that."""
    if way == "root" and os.geteuid() != 0:
        pytest.skip("not root")
    (tmp_path / "resolv.conf").write_text("nameserver 10.96.0.10")

    done = subprocess.run(
        [sys.executable, "-c", UNUSUAL_ETC, str(tmp_path), way], capture_output=True, text=True, check=False
    )

    assert done.stdout == "nameserver 10.96.0.10 kept\n", done.stderr


@pytest.mark.rootless
@pytest.mark.slow
def test_an_ordinary_user_without_any_power_has_a_mesh(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Root with a user namespace is not the same: this is the user of the README's first line."""
    python, packages = Path("/usr/bin/python3"), Path(pytest.__file__).resolve().parent.parent
    if os.geteuid() != 0:
        pytest.skip("the other tests run as an ordinary user already")
    if not python.exists() or not _readable_by_all(packages, Path(clean.__file__)):
        pytest.skip("no Python and packages that another user can read")
    run_dir = f"/tmp/ambient-test-{os.getpid()}"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{Path(clean.__file__).parents[2]}:{packages}"}
    options = {
        "user": ORDINARY_USER,
        "group": ORDINARY_USER,
        "extra_groups": [],
        "env": environment,
        "cwd": "/",
    }
    version = subprocess.run(
        [python, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=False
    )
    if version.stdout.strip() != str(sys.version_info[:2]):
        pytest.skip("the packages are for another Python")

    try:
        done = subprocess.run(
            [python, "-B", "-c", UP_AND_DOWN, run_dir], capture_output=True, text=True, check=False, **options
        )

        running = "agent/node-1 control ztunnel/node-1 ztunnel/node-1/zygote"
        assert done.stdout == f"True {running}\n", done.stderr
        assert not Path(run_dir).exists()
    finally:
        clean.clean(run_dir)


def _readable_by_all(*paths: Path) -> bool:
    return all(each.stat().st_mode & 0o001 for path in paths for each in path.parents if each.is_dir())
