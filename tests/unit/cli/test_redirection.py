"""``ambient redirect show``, against a control plane and an agent that are tables of answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from ambient.cli.main import run
from tests.unit.cli.fake_mesh import FakeMesh, fake_mesh, listening

POD = {"metadata": {"name": "web", "namespace": "shop"}, "spec": {"nodeName": "node-1"}, "status": {}}
SHOWN = {"uid": "u", "state": "enrolled", "plan": ["table inet ambient {", "}"], "kernel": [], "diff": []}


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMesh]:
    """A mesh with one pod and its node's agent."""
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "run"))
    answers: dict[str, Any] = {
        "get": lambda params: [POD] if params["name"] == "web" else [],
        "redirect_show": SHOWN,
    }
    with ExitStack() as stack:
        made = stack.enter_context(fake_mesh(tmp_path / "run", answers))
        (made.run_dir / "nodes/node-1").mkdir(parents=True)
        stack.enter_context(listening(made.run_dir / "nodes/node-1/cni.sock", made))
        yield made


def test_the_plan_is_text(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """That nft could read."""
    assert run(["redirect", "show", "pod/web", "-n", "shop"]) == 0

    assert capsys.readouterr().out == "# shop/web on node-1: enrolled\ntable inet ambient {\n}\n"
    assert mesh.asked("redirect_show") == {"namespace": "shop", "pod": "web"}


def test_a_difference_is_exit_1(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """So that a script hears of it; only where it was asked."""
    mesh.answers["redirect_show"] = {**SHOWN, "diff": ["--- plan", "-}"]}

    assert run(["redirect", "show", "web", "-n", "shop"]) == 0
    capsys.readouterr()
    assert run(["redirect", "show", "web", "-n", "shop", "--diff"]) == 1
    assert capsys.readouterr().out == "--- plan\n-}\n"
    assert run(["redirect", "show", "web", "-n", "shop", "--diff", "-o", "json"]) == 1
    body = json.loads(capsys.readouterr().out)
    assert (body["kind"], body["same"], body["node"]) == ("Redirection", False, "node-1")


def test_no_such_pod(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, with the next step."""
    assert run(["redirect", "show", "nobody", "-n", "shop"]) == 1
    assert "no pod 'nobody' in namespace shop" in capsys.readouterr().err


def test_an_agent_that_is_away(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose log to read."""
    monkeypatch.setitem(mesh.answers, "get", [{**POD, "spec": {"nodeName": "node-2"}}])

    assert run(["redirect", "show", "web", "-n", "shop"]) == 69
    assert "ambient logs agent/node-2" in capsys.readouterr().err
