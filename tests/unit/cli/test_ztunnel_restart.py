"""``ambient ztunnel restart``: which nodes it asks for, and what it shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ambient.cli.main import run
from ambient.errors import AmbientError
from tests.unit.cli.fake_mesh import FakeMesh, fake_mesh


def restarted(params: Any) -> Any:
    return {"node": params["node"], "old_pid": 71, "pid": 72, "seconds": 0.05}


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMesh]:
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "run"))
    status = {"nodes": [{"name": "node-1"}, {"name": "node-2"}], "processes": []}
    with fake_mesh(tmp_path / "run", {"status": status, "restart_ztunnel": restarted}) as made:
        yield made


def nodes_asked(mesh: FakeMesh) -> list[str]:
    return [params["node"] for method, params in mesh.calls if method == "restart_ztunnel"]


def test_one_node(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """Old and new process, so that one can be found in logs and the other watched."""
    assert run(["ztunnel", "restart", "--node", "node-2"]) == 0

    lines = capsys.readouterr().out.splitlines()
    assert nodes_asked(mesh) == ["node-2"]
    assert lines[1].split() == ["node-2", "71", "72", "0.05s"]


def test_every_node_one_after_the_other(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """A bad new version stops at the first node."""
    assert run(["ztunnel", "restart", "--all", "-o", "json"]) == 0

    assert nodes_asked(mesh) == ["node-1", "node-2"]
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "ZtunnelRestart"
    assert [one["pid"] for one in document["items"]] == [72, 72]


def test_a_failure_stops_it(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """The others still run what they ran."""
    mesh.answers["restart_ztunnel"] = AmbientError("the new ztunnel of node-1 does not serve: see its log")

    assert run(["ztunnel", "restart", "--all"]) == 1

    assert nodes_asked(mesh) == ["node-1"]
    assert "does not serve" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--all", "--node", "node-1"]], ids=["neither", "both"])
def test_it_must_be_said_which(
    mesh: FakeMesh, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Restarting everything by accident costs nobody a connection, but it is not what was meant."""
    assert run(["ztunnel", "restart", *arguments]) == 2

    assert "either --node NODE or --all" in capsys.readouterr().err
    assert mesh.calls == []
