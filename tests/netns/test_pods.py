"""Pods are real: programs that know nothing of us run in them as they are installed."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ambient.errors import AmbientError
from ambient.fabric import clean
from tests.netns.meshes import Mesh, pod

pytestmark = [pytest.mark.netns, pytest.mark.slow]

SLEEPER = ("sleep", "infinity")


@pytest.fixture(params=["rootless", "root"], scope="module")
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh of two nodes for the whole file, once per way of running."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("not root")
    path = tmp_path_factory.mktemp("pods") / "run"
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AMBIENT_ROOTLESS", "1" if request.param == "rootless" else "0")
            made = Mesh(path, nodes=2)
            made.apply(pod("client", *SLEEPER))
        yield made
    finally:
        clean.clean(str(path))


@pytest.fixture(autouse=True)
def only_the_client(mesh: Mesh) -> Iterator[None]:
    """Every test finds the pod ``client`` and nothing else."""
    yield
    mesh.delete(*(name for name in mesh.pods() if name != "client"))


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} on this machine")


def test_programs_of_pods_are_real_and_reach_each_other(mesh: Mesh) -> None:
    """The point of the fabric: what runs in a pod neither knows nor needs us."""
    server = (sys.executable, "-m", "http.server", "80")
    mesh.apply(pod("server", *server, readinessProbe={"tcpSocket": {"port": 80}}))

    fetched = mesh.run(
        "client", "curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{mesh.ip('server')}/"
    )

    assert fetched.stdout == "200", fetched
    assert mesh.pods()["client"]["status"]["hostIP"] != mesh.pods()["server"]["status"]["hostIP"]


def test_a_pod_is_a_place_of_its_own(mesh: Mesh) -> None:
    """Names, processes and the mesh's sockets: what a container promises, as far as we promise it."""
    mesh.apply(pod("web", *SLEEPER))
    looks = f"hostname; ls -A {mesh.run_dir}; cat /proc/1/comm; head -1 /etc/resolv.conf"
    script = f"{looks}; ip link add x type dummy"

    said = mesh.run("web", "sh", "-c", script)

    assert said.stdout.splitlines() == [
        "web",
        "pause",
        "search test.svc.cluster.local svc.cluster.local cluster.local",
    ]
    assert "not permitted" in said.stderr


def test_a_pod_cannot_change_the_machine_by_writing_files(mesh: Mesh) -> None:
    """Root's files are root's in a pod too; capabilities do not guard these."""
    mesh.apply(pod("web", *SLEEPER))
    targets = ("/proc/sys/net/ipv4/ip_forward", "/proc/sysrq-trigger", "/sys/kernel/mm/ksm/run")

    outcomes = [mesh.run("web", "test", "-w", path).returncode for path in targets]

    assert 0 not in outcomes


def test_exec_passes_the_exit_code_on(mesh: Mesh) -> None:
    """Scripts build on it; 128 + n for a signal, 127 for what is not there, as shells do."""
    mesh.apply(pod("web", *SLEEPER))

    codes = [
        mesh.run("web", "sh", "-c", "exit 7").returncode,
        mesh.run("web", "sh", "-c", "kill -9 $$").returncode,
        mesh.run("web", "nonesuch").returncode,
    ]

    assert codes == [7, 137, 127]


def test_entering_a_network_alone_keeps_the_machine_in_sight(mesh: Mesh) -> None:
    """A load generator reads files of the machine and speaks from the pod; a capture looks from outside."""
    mesh.apply(pod("web", *SLEEPER))

    inside = mesh.run("web", "sh", "-c", f"ls {mesh.run_dir}; ip -4 -o addr show eth0", network_only=True)
    outside = mesh.run_outside("ip", "-o", "link")

    assert "mesh.json" in inside.stdout
    assert mesh.ip("web") in inside.stdout
    assert " n1@" in outside.stdout


def test_a_program_that_ends_is_started_again(mesh: Mesh) -> None:
    """restartPolicy Always; the pod itself stays, with its addresses and its namespaces."""
    mesh.apply(pod("web", *SLEEPER))
    before = mesh.pods()["web"]["status"]

    os.kill(before["ambient"]["pid"], signal.SIGKILL)
    mesh.wait_for(
        lambda: mesh.pods()["web"]["status"]["ambient"]["pid"] not in (0, before["ambient"]["pid"]), "restart"
    )

    after = mesh.pods()["web"]["status"]
    assert after["ambient"]["netns"] == before["ambient"]["netns"]
    assert after["containerStatuses"][0]["restartCount"] == 1


def test_what_cannot_run_says_why(mesh: Mesh) -> None:
    """A typing error in a manifest must not look like a slow machine."""
    with pytest.raises(AmbientError, match="nonesuch"):
        mesh.apply_within(1.5, pod("web", "nonesuch"))


def test_a_pod_whose_namespaces_are_killed_is_made_anew(mesh: Mesh) -> None:
    """The pause process is one kill away from everybody; its pod must not be lost for ever."""
    mesh.apply(pod("web", *SLEEPER))
    before = mesh.pods()["web"]["status"]["ambient"]["netns"]

    os.kill(int(before.split("/")[2]), signal.SIGKILL)
    mesh.wait_for(
        lambda: mesh.pods()["web"]["status"]["ambient"]["netns"] not in ("", before), "another namespace"
    )
    mesh.wait_for(lambda: mesh.pods()["web"]["status"]["phase"] == "Running", "the pod")

    assert mesh.run("web", "ip", "route", "get", "10.96.0.10").returncode == 0


def test_nginx_as_the_distribution_ships_it(mesh: Mesh) -> None:
    """Port 80, its own user, its logs and its PID file: everything a one-uid map and a shared /run break."""
    need("nginx")
    probe = {"httpGet": {"path": "/", "port": 80}}
    mesh.apply(pod("web", "nginx", "-g", "daemon off;", readinessProbe=probe))

    fetched = mesh.run("client", "curl", "-sS", "-i", f"http://{mesh.ip('web')}/")

    assert "200 OK" in fetched.stdout, fetched
    assert not Path("/run/nginx.pid").exists()


def test_redis_with_an_exec_probe(mesh: Mesh) -> None:
    """It writes into its working directory when it ends: that must be the pod's."""
    need("redis-server")
    probe = {"exec": {"command": ["redis-cli", "ping"]}}
    server = ("redis-server", "--bind", "0.0.0.0", "--protected-mode", "no")
    mesh.apply(pod("cache", *server, readinessProbe=probe))

    stored = mesh.run("client", "redis-cli", "-h", mesh.ip("cache"), "set", "a", "b")

    assert stored.stdout.strip() == "OK", stored


def test_a_failed_liveness_probe_restarts_the_program(mesh: Mesh) -> None:
    """A process that hangs looks well to everybody who does not ask."""
    probe = {"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 1}
    mesh.apply(pod("stuck", *SLEEPER, livenessProbe=probe))

    mesh.wait_for(lambda: restarts(mesh, "stuck") > 0, "a restart")


def restarts(mesh: Mesh, name: str) -> int:
    return int(mesh.pods()[name]["status"]["containerStatuses"][0]["restartCount"])


def test_two_containers_share_a_network_and_keep_their_logs_apart(mesh: Mesh) -> None:
    """A pod is one host with several programs."""
    both: dict[str, Any] = pod("pair", "python3", "-m", "http.server", "8000")
    fetch = "until curl -sS -o /dev/null localhost:8000; do sleep 0.05; done"
    again = f"{fetch}; echo served $WHO; exec sleep infinity"
    who = {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    both["spec"]["containers"].append({"name": "second", "command": ["sh", "-c", again], "env": [who]})
    mesh.apply(both)

    log = next(each["log"] for each in mesh.status()["processes"] if each["container"] == "second")

    mesh.wait_for(lambda: "served pair" in Path(log).read_text(), "the second container to reach the first")


def test_a_pod_on_the_nodes_network_has_the_nodes_address(mesh: Mesh) -> None:
    """Such pods exist in every cluster; they must run, and are never captured."""
    shared = pod("host", *SLEEPER)
    shared["spec"]["hostNetwork"] = True
    mesh.apply(shared)

    said = mesh.run("host", "ip", "-4", "-o", "addr", "show", "eth0")

    assert mesh.ip("host") == mesh.pods()["host"]["status"]["hostIP"]
    assert mesh.ip("host") in said.stdout
