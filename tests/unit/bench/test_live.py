"""Switching a mesh between modes: what is asked of it, in which order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ambient.bench import live
from ambient.bench.live import LiveMesh
from ambient.bench.plan import Turn
from ambient.bench.scenario import Scenario
from ambient.errors import AmbientError, Unavailable
from ambient.fabric import clean
from tests.unit.cli.fake_mesh import FakeMesh, fake_mesh

SCENARIO = Scenario("shop", "shop", "client", "http://web/")
PROCESSES = [
    {"name": "ztunnel/node-1", "role": "ztunnel", "node": "node-1", "pod": "", "pid": 11},
    {"name": "sidecar/shop/web", "role": "sidecar", "node": "node-1", "pod": "shop/web", "pid": 12},
    {"name": "ztunnel/node-2", "role": "ztunnel", "node": "node-2", "pid": 0},
    {"name": "control", "role": "control", "pid": 13},
]


@dataclass
class Record:
    """As much of the fabric's record as is looked at."""

    init_pid: int


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMesh]:
    """Daemons that say yes to everything."""
    monkeypatch.setattr(clean, "running", lambda _where: Record(os.getpid()))
    answers: dict[str, Any] = {
        "status": {"fabric": "netns", "processes": PROCESSES},
        "enroll": {"failed": 0, "restarts": 2, "pods": []},
        "waypoint_list": {"items": []},
        "waypoint_apply": {},
        "waypoint_delete": {},
        "wait_ready": {},
        "get": [{"metadata": {"name": "client"}, "status": {"ambient": {"pid": 99}}}],
    }
    with fake_mesh(tmp_path, answers) as made:
        yield made


@pytest.fixture
def lab(mesh: FakeMesh) -> Iterator[LiveMesh]:
    """The port on that mesh."""
    made = LiveMesh(mesh.run_dir, SCENARIO)
    mesh.calls.clear()
    yield made
    made.close()


def words(mesh: FakeMesh) -> list[str]:
    """The calls that change something, in order."""
    return [
        f"{method} {params.get('mode', '')}".strip()
        for method, params in mesh.calls
        if method in ("enroll", "waypoint_apply", "waypoint_delete")
    ]


def test_a_waypoint_comes_last_and_goes_first(lab: LiveMesh, mesh: FakeMesh) -> None:
    """Traffic must not be sent to what is not there yet, or any more."""
    for mode in ("ambient+waypoint", "none"):
        lab.switch(Turn(mode))

    assert words(mesh) == [
        "enroll none", "enroll ambient", "waypoint_apply", "waypoint_delete", "enroll none",
    ]  # fmt: skip


def test_a_switch_resets_what_would_be_measured_under_the_wrong_mode(lab: LiveMesh, mesh: FakeMesh) -> None:
    """And it waits, and says what it cost."""
    switched = lab.switch(Turn("sidecar", "envoy"))

    asked = mesh.asked("enroll")
    assert (asked["existing"], asked["wait"], asked["engine"]) == ("reset", True, "envoy")
    assert switched.restarts == 2
    assert switched.seconds > 0


def test_a_switch_that_fails_ends_the_run_with_its_reason(lab: LiveMesh, mesh: FakeMesh) -> None:
    """Half a namespace in a mode is no mode."""
    mesh.answers["enroll"] = {"failed": 1, "pods": [{"reason": ""}, {"reason": "port 15008 taken"}]}

    with pytest.raises(AmbientError, match="cannot switch to none: port 15008 taken"):
        lab.switch(Turn("ambient"))


def test_only_running_proxies_are_charged(lab: LiveMesh) -> None:
    """Control and agents are not on the way of a byte."""
    assert [(one.name, one.pid, one.pod) for one in lab.proxies()] == [
        ("ztunnel/node-1", 11, None), ("sidecar/shop/web", 12, "shop/web"),
    ]  # fmt: skip


def test_all_processes_of_a_proxy_are_one_proxy() -> None:
    """A zygote, or a ztunnel that drains, costs what the node's ztunnel costs, and is no proxy more."""
    zygote = {"name": "ztunnel/node-1/zygote", "role": "ztunnel", "node": "node-1", "pid": 15}
    draining = {"name": "ztunnel/node-1/14", "role": "ztunnel", "node": "node-1", "pid": 14}

    found = live.proxies_among([zygote, *PROCESSES, draining])

    assert [(one.name, one.pids) for one in found] == [
        ("ztunnel/node-1", (11, 14, 15)), ("sidecar/shop/web", (12,)),
    ]  # fmt: skip


def test_programs_are_started_inside(lab: LiveMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """The load in the client's pod, the capture in the outer network on the links of nodes."""
    started: list[list[str]] = []
    monkeypatch.setattr(live, "ChildTalker", lambda argv, _env: started.append(list(argv)))
    monkeypatch.setattr(LiveMesh, "_links", lambda _self: ["n1", "n2"])

    lab.load(["--rate", "1"])
    lab.capture("m4rk")

    assert "99" in started[0]
    assert started[0][-4:] == ["--target", "http://web/", "--rate", "1"]
    assert started[1][-4:] == ["--links", "n1,n2", "--marker", "m4rk"]
    assert "--pod" not in started[1]


def test_no_wire_no_capture(mesh: FakeMesh) -> None:
    """The loopback fabric has no nodes to look between."""
    mesh.answers["status"] = {"fabric": "loopback", "processes": []}
    made = LiveMesh(mesh.run_dir, SCENARIO)

    assert made.capture("m") is None
    assert made._links() == []
    made.close()


def test_a_client_that_does_not_run_is_said(lab: LiveMesh, mesh: FakeMesh) -> None:
    """Instead of a setns error."""
    mesh.answers["get"] = []

    with pytest.raises(AmbientError, match="'client' does not run"):
        lab.load([])


def test_an_earlier_waypoint_is_known_and_a_strange_one_refused(mesh: FakeMesh) -> None:
    """Otherwise mode ambient would be measured with L7 in its way."""
    mesh.answers["waypoint_list"] = {"items": [{"namespace": "shop", "name": "waypoint"}]}
    made = LiveMesh(mesh.run_dir, SCENARIO)
    made.switch(Turn("ambient"))
    made.close()
    assert words(mesh) == ["waypoint_delete", "enroll none", "enroll ambient"]

    mesh.answers["waypoint_list"] = {"items": [{"namespace": "shop", "name": "mine"}]}
    with pytest.raises(AmbientError, match="waypoint 'mine' would be measured"):
        LiveMesh(mesh.run_dir, SCENARIO)


def test_no_mesh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """69, with the next step."""
    monkeypatch.setattr(clean, "running", lambda _where: None)

    with pytest.raises(Unavailable, match="ambient up"):
        LiveMesh(tmp_path, SCENARIO)
