"""A container of a runtime that never heard of us, enrolled while it runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from ambient.engine.netns import open_netns
from ambient.fabric import clean
from ambient.redirect import backend
from ambient.redirect.backend import Standing
from tests.lab import POD_SYSCTLS, Host, make_netns
from tests.netns.meshes import Mesh, wait_until
from tests.netns.test_cni_matrix import connect_by_hand

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(240)]

# On machines whose root lacks CAP_SYS_RESOURCE, and where cgroup2 is mounted beside cgroup1, crun needs help.
HIDE_CGROUP2 = ("unshare", "-m", "--propagation", "slave", "sh", "-c")
SCRIPT = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec podman "$@"'
GLOBAL = ("--cgroup-manager=cgroupfs", "--storage-driver", "vfs", "--events-backend=none")
LIMITS = ("--ulimit", "nofile=1024:20000", "--ulimit", "nproc=4096:4096", "--cgroups=disabled")
ECHO = (
    "import socket,threading\n"
    "s=socket.create_server(('::',8080),family=socket.AF_INET6,dualstack_ipv6=True)\n"
    "def serve(c,a):\n"
    "    c.sendall(a[0].encode()+b'\\n')\n"
    "    while d:=c.recv(4096): c.sendall(d)\n"
    "while True: threading.Thread(target=serve,args=s.accept(),daemon=True).start()\n"
)


def podman(root: Path, *arguments: str) -> str:
    """Run podman with storage of its own below *root*."""
    places = [word for name in ("root", "runroot", "tmpdir") for word in (f"--{name}", str(root / name))]
    done = subprocess.run(
        (*HIDE_CGROUP2, SCRIPT, "sh", *places, *GLOBAL, *arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def container() -> Iterator[int]:
    """The host pid of a container that serves on 8080, without any network yet."""
    if os.geteuid() != 0:
        pytest.skip("not root: a rootless mesh enters no foreign namespace")
    if shutil.which("podman") is None or shutil.which("crun") is None:
        pytest.skip("no podman with crun")
    # podman refuses a runroot of over 50 characters, and pytest's are longer.
    root = Path(tempfile.mkdtemp(prefix="podman-", dir="/tmp"))
    rootfs = root / "rootfs"
    for name in ("usr", "etc", "proc", "sys", "dev", "tmp", "run"):
        (rootfs / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (rootfs / name).symlink_to(f"usr/{name}")
    run = ("run", "-d", "--name", "echo", *LIMITS, "--network", "none", "-v", "/usr:/usr:ro")
    try:
        podman(root, *run, "--rootfs", str(rootfs), "/usr/bin/python3", "-c", ECHO)
        yield int(podman(root, "inspect", "--format", "{{.State.Pid}}", "echo"))
    finally:
        podman(root, "rm", "-f", "-t", "0", "echo")
        # Its monitor may still be putting away what is gone already.
        wait_until(lambda: _removed(root), f"{root} to be removed")


def _removed(root: Path) -> bool:
    shutil.rmtree(root, ignore_errors=True)
    return not root.exists()


def ambient(run_dir: Path, *arguments: str) -> str:
    """The command line, as a user would type it."""
    argv = (sys.executable, "-m", "ambient.cli.main", "--run-dir", str(run_dir), *arguments)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=90)
    assert done.returncode == 0, done.stderr
    return done.stdout


def greeted(client: Host, address: str) -> tuple[object, str]:
    """A connection to the container, and whom it says it sees."""
    sock = client.connect(address, 8080)
    line = b""
    while not line.endswith(b"\n"):
        line += sock.recv(1) or b"?\n"
    return sock, line.decode().strip().removeprefix("::ffff:")


def test_a_podman_container_is_enrolled_by_its_pid(
    container: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pid is all that is known of it; the older connection lives on, the next ones are tunnelled."""
    monkeypatch.setenv("AMBIENT_ROOTLESS", "0")
    run_dir = tmp_path / "run"
    with ExitStack() as stack:
        stack.callback(clean.clean, str(run_dir))
        own, theirs = make_netns(POD_SYSCTLS), open_netns(f"/proc/{container}/ns/net")
        for fd in (own, theirs):
            stack.callback(os.close, fd)
        client = Host("client", own, "192.0.2.1", "2001:db8::1")
        connect_by_hand(stack, [client, Host("echo", theirs, "192.0.2.2", "2001:db8::2")])
        older, _ = greeted(client, "192.0.2.2")
        mesh = Mesh(run_dir)

        enrolled = json.loads(ambient(run_dir, "enroll", f"pid/{container}", "--name", "echo", "-o", "json"))
        ambient(run_dir, "enroll", f"netns//proc/{os.getpid()}/fd/{own}", "--name", "client")

        assert [(pod["name"], pod["enrolled"]) for pod in enrolled["pods"]] == [("echo", True)]
        assert backend.standing(theirs) is Standing.CAPTURED
        for address, source in (("192.0.2.2", "192.0.2.1"), ("2001:db8::2", "2001:db8::1")):
            sock, seen = greeted(client, address)
            with sock:  # type: ignore[attr-defined]
                assert seen == source
        log = mesh.run_dir / "logs/ztunnel-node-1.log"
        wait_until(lambda: log.read_text().count('direction="inbound"') == 2, "both records")
        with older:  # type: ignore[attr-defined]
            older.sendall(b"still here")  # type: ignore[attr-defined]
            assert older.recv(10) == b"still here"  # type: ignore[attr-defined]
        ambient(run_dir, "unenroll", f"pid/{container}")
        wait_until(lambda: backend.standing(theirs) is Standing.NONE, "the rules to go")
