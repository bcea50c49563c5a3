"""What ``describe`` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from ambient.cli.main import run
from tests.unit.cli.fake_mesh import FakeMesh, fake_mesh

POD = {
    "object": "pod", "namespace": "shop", "name": "web", "node": "node-1", "addresses": ["10.244.1.2"],
    "identity": "spiffe://cluster.local/ns/shop/sa/web", "services": ["shop/web"], "enrolled": False,
    "state": "failed", "reason": "port 15001 is taken by nginx (pid 7)", "strict": True,
    "exclusions": {"outbound_ports": [3306]},
    "way": [
        {"step": "capture", "holds": False, "detail": "port 15001 is taken by nginx (pid 7)"},
        {"step": "HBONE", "holds": True, "detail": "peers reach it"},
    ],
}  # fmt: skip
SERVICE = {
    "object": "service", "namespace": "shop", "name": "web", "hostname": "web.shop.svc.cluster.local",
    "addresses": ["10.96.0.7"], "ports": [{"port": 80, "target_port": 8080}], "way": [],
    "endpoints": [
        {"pod": "shop/web", "node": "node-1", "protocol": "TCP", "enrolled": False, "reason": "no label"}
    ],
}  # fmt: skip


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMesh]:
    """A fake mesh where the command looks for one."""
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "run"))
    with fake_mesh(tmp_path / "run", {"describe": POD}) as made:
        yield made


def test_a_pod_says_why_it_is_not_enrolled(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """The first question of whoever asks."""
    assert run(["describe", "pod/web", "-n", "shop"]) == 0

    text = capsys.readouterr().out
    assert "Enrolled:     no, failed (port 15001 is taken by nginx (pid 7))" in text
    assert "‼ capture     port 15001" in text
    assert "√ HBONE       peers reach it" in text
    assert "Left alone:   outbound ports 3306" in text
    assert mesh.asked("describe") == {"kind": "Pod", "namespace": "shop", "name": "web"}


def test_a_service_shows_its_endpoints(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """Each with its own reason."""
    mesh.answers["describe"] = SERVICE
    assert run(["describe", "svc/web", "-n", "shop"]) == 0

    assert "shop/web   node-1   TCP        false      no label" in capsys.readouterr().out
    assert run(["describe", "svc/web", "-n", "shop", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "Description"


@pytest.mark.parametrize("target", ["ns/shop", "pod/", "nonsense/x"])
def test_what_cannot_be_described_is_a_usage_error(mesh: FakeMesh, target: str) -> None:
    """One line, exit 2."""
    assert run(["describe", target]) == 2
