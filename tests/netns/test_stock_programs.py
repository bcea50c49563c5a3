"""Programs that know nothing of us run in pods as they are installed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ambient.fabric import clean
from tests.netns.meshes import Mesh, pod

pytestmark = [pytest.mark.netns, pytest.mark.slow]

SLEEPER = ("sleep", "infinity")


@pytest.fixture(params=["rootless", "root"])
def mesh(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mesh]:
    """A mesh of one node, once per way of running."""
    if request.param == "root" and os.geteuid() != 0:
        pytest.skip("not root")
    monkeypatch.setenv("AMBIENT_ROOTLESS", "1" if request.param == "rootless" else "0")
    try:
        yield Mesh(tmp_path / "run")
    finally:
        clean.clean(str(tmp_path / "run"))


def need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"no {program} on this machine")


def test_nginx_as_the_distribution_ships_it(mesh: Mesh) -> None:
    """Port 80, its own user, its logs and its PID file: everything a one-uid map and a shared /run break."""
    need("nginx")
    probe = {"httpGet": {"path": "/", "port": 80}}
    mesh.apply(pod("web", "nginx", "-g", "daemon off;", readinessProbe=probe), pod("client", *SLEEPER))

    fetched = mesh.run("client", "curl", "-sS", "-i", f"http://{mesh.ip('web')}/")

    assert "200 OK" in fetched.stdout, fetched
    assert not Path("/run/nginx.pid").exists()


def test_redis_with_an_exec_probe(mesh: Mesh) -> None:
    """It writes into its working directory when it ends: that must be the pod's."""
    need("redis-server")
    probe = {"exec": {"command": ["redis-cli", "ping"]}}
    server = ("redis-server", "--bind", "0.0.0.0", "--protected-mode", "no")
    mesh.apply(pod("cache", *server, readinessProbe=probe), pod("client", *SLEEPER))

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

    assert "100.64.1.2" in said.stdout
    assert mesh.ip("host") == "100.64.1.2"
