"""A ztunnel that is killed, replaced or left without control: who connects notices nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ambient.engine.blocking import BlockingAdminClient
from ambient.fabric import boot, clean, enter
from tests.netns.meshes import DEADLINE, Mesh, pod, wait_until

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(240)]

PORT = 8080
KNOCK = str(Path(__file__).parents[2] / "benchmarks" / "knock.py")
NODES = ("node-1", "node-2")


class Shop:
    """A client on node 1 and a server on node 2, enrolled."""

    def __init__(self, run_dir: Path) -> None:
        self.mesh = Mesh(run_dir, nodes=2)
        probe = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
        client = pod("client", "sleep", "infinity")
        server = pod("server", sys.executable, KNOCK, "serve", str(PORT), readinessProbe=probe)
        for each, node in ((client, "node-1"), (server, "node-2")):
            each["spec"]["nodeName"] = node
        self.mesh.apply(client, server)
        target = {"kind": "namespace", "namespace": "test", "name": "test"}
        how = {"mode": "ambient", "engine": "ambient", "existing": "keep", "dry_run": False, "wait": True}
        with BlockingAdminClient.connect(run_dir / "control.sock", DEADLINE) as control:
            assert control.call("enroll", targets=[target], timeout=DEADLINE, **how)["failed"] == 0
        # Now, because control may be gone when they are needed.
        self.client, self.server = self.mesh.pid("client"), self.mesh.ip("server")

    def pid(self, name: str) -> int:
        """Host PID of a daemon, 0 while it is not there."""
        found = [each["pid"] for each in self.mesh.status()["processes"] if each["name"] == name]
        return int(found[0]) if found else 0

    def kill(self, name: str) -> tuple[float, float]:
        """SIGKILL it; returns between when and when it died, for on a busy machine that takes its time."""
        pid = self.pid(name)
        before = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: is_dead(pid), "its end")
        return before, time.monotonic()

    def ztunnels(self) -> int:
        """How many processes there are in the role, zygotes included."""
        return sum(each["role"] == "ztunnel" for each in self.mesh.status()["processes"])

    def upgrade(self, node: str) -> dict[str, Any]:
        """As ``ambient ztunnel restart`` does."""
        with BlockingAdminClient.connect(self.mesh.run_dir / "fabric.sock", DEADLINE) as fabric:
            done: dict[str, Any] = fabric.call("restart_ztunnel", node=node)
        return done

    def knock(self, **options: float) -> subprocess.Popen[str]:
        """Connections from the client to the server, begun when this returns."""
        arguments = [f"--{name}={value}" for name, value in options.items()]
        program = (sys.executable, KNOCK, "knock", self.server, str(PORT), *arguments)
        argv = enter.command(self.mesh.init_pid, self.client, program, network_only=True)
        environment = boot.daemon_environment(os.environ)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    def log(self, name: str) -> list[str]:
        """What a daemon said, without access records."""
        lines = (self.mesh.run_dir / "logs" / f"{name}.log").read_text().splitlines()
        return [line for line in lines if "\taccess\t" not in line]


def results(process: subprocess.Popen[str]) -> tuple[list[tuple[float, float, str]], dict[str, Any]]:
    """What became of the short connections, and of the long streams."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    document = json.loads(said)
    return [tuple(each) for each in document["short"]], document["long"]


@pytest.fixture(params=["rootless", "root"])
def shop(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """One mesh a test, taken down whatever happens."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("not root")
    monkeypatch.setenv("AMBIENT_ROOTLESS", "1" if request.param == "rootless" else "0")
    path = tmp_path / "run"
    try:
        yield Shop(path)
    finally:
        clean.clean(str(path))


def is_dead(pid: int) -> bool:
    """Whether it runs no more, buried or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True


def was_open(connection: tuple[float, float, str], before: float, after: float) -> bool:
    """Whether it was at some moment between the two."""
    began, lasted, _ = connection
    return began <= after and before <= began + lasted


def test_kill_refuses_nobody(shop: Shop) -> None:
    """Who connects while ztunnel is dead waits in the backlog; only what was open at that moment is cut."""
    knocking = shop.knock(rate=50, seconds=8)
    kills = []
    for node in NODES * 2:
        time.sleep(1.5)  # Not luck: kills are spread over the run, that is all.
        kills.append(shop.kill(f"ztunnel/{node}"))

    short, _ = results(knocking)

    failures = [each for each in short if each[2]]
    in_flight = [each for each in failures if any(was_open(each, *kill) for kill in kills)]
    assert len(short) == 400
    assert failures == in_flight
    assert len(in_flight) < len(short) / 4, "a handful may be open at the moment of a kill, not all of them"
    for node in NODES:
        wait_until(lambda node=node: shop.pid(f"ztunnel/{node}") != 0, "it to be back")


def test_upgrades_cost_nobody_a_connection(shop: Shop) -> None:
    """Short ones go to whichever is newest, long streams stay where they are, byte for byte."""
    knocking = shop.knock(rate=50, seconds=8, long=30, every=0.5)
    before = {node: shop.pid(f"ztunnel/{node}") for node in NODES}
    for number in range(6):
        done = shop.upgrade(NODES[number % 2])
        assert done["pid"] == shop.pid(f"ztunnel/{done['node']}") != done["old_pid"]
    # Each node's first one carries the long streams; those in between have nothing left to do.
    wait_until(lambda: shop.ztunnels() == 6, "the others to go")
    still = {each["pid"] for each in shop.mesh.status()["processes"] if each["role"] == "ztunnel"}
    assert set(before.values()) <= still

    short, streams = results(knocking)

    assert [each for each in short if each[2]] == []
    assert (streams["failures"], streams["alive"]) == ([], 30)
    assert streams["messages"] > 30
    wait_until(lambda: shop.ztunnels() == 4, "the last old ones to go with their connections")
    for node in NODES:
        log = shop.log(f"ztunnel-{node}")
        assert sum("retired, and nothing is open any more" in line for line in log) == 3
        assert not [line for line in log if "taken" in line], "the node's own ports are handed over, too"


@pytest.mark.parametrize("control", [signal.SIGKILL, signal.SIGSTOP], ids=["dead", "frozen"])
def test_known_workloads_are_served_without_control(shop: Shop, control: signal.Signals) -> None:
    """Control is away, both ztunnels die: what follows goes by what these knew, with their certificates."""
    snapshots = [shop.mesh.run_dir / "nodes" / node / "mesh.snapshot" for node in NODES]
    for path in snapshots:
        wait_until(lambda path=path: b"HBONE" in path.read_bytes(), "the enrollment to be kept")
        assert b"PRIVATE" not in path.read_bytes()
    os.kill(shop.pid("control"), control)
    for node in NODES:
        shop.kill(f"ztunnel/{node}")

    short, _ = results(shop.knock(rate=20, seconds=2))

    assert [each for each in short if each[2]] == []
    for node in NODES:
        assert "going by what the last process knew" in str(shop.log(f"ztunnel-{node}"))
    secure = (shop.mesh.run_dir / "logs" / "ztunnel-node-2.log").read_text().splitlines()[-1]
    assert 'src.identity="spiffe://cluster.local/ns/test/sa/default"' in secure


def test_a_spoiled_snapshot_harms_nobody(shop: Shop) -> None:
    """Control is there: nobody notices anything but one line; the file is good again soon."""
    path = shop.mesh.run_dir / "nodes" / "node-1" / "mesh.snapshot"
    wait_until(path.exists, "a snapshot")
    path.write_bytes(path.read_bytes()[:-7])
    shop.kill("ztunnel/node-1")

    short, _ = results(shop.knock(rate=20, seconds=1))

    assert [each for each in short if each[2]] == []
    wait_until(lambda: b"HBONE" in path.read_bytes(), "a good one to be written")
