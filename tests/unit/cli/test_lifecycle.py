"""``up``, ``down``, ``clean`` and ``exec`` against a fabric that only pretends."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ambient.cli.main import run
from ambient.errors import AmbientError
from ambient.fabric import boot, clean
from tests.unit.cli.fake_mesh import FakeMesh, fake_mesh

POD = {"metadata": {"name": "client", "namespace": "shop"}, "status": {"ambient": {"pid": 4242}}}


@dataclass
class Record:
    """As much of the fabric's record as is looked at."""

    init_pid: int = 4711


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMesh]:
    """Daemons that would be there once ``boot.start`` has returned."""
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "run"))
    with fake_mesh(tmp_path / "run", {"apply": {}, "get": [POD], "wait_ready": {"pods": 1}}) as made:
        yield made


@pytest.fixture
def fabric(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was asked of the fabric."""
    asked: list[Any] = []

    def start(where: str, **how: Any) -> boot.Started:
        asked.append(("start", how))
        return boot.Started(run_dir=where, record=Record(), notes=("loopback it is",))  # type: ignore[arg-type]

    monkeypatch.setattr(boot, "start", start)
    monkeypatch.setattr(clean, "down", lambda where: asked.append(("down", where)) or True)
    return asked


def test_up_starts_applies_and_waits(
    mesh: FakeMesh, fabric: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bookinfo on two nodes unless told otherwise; notes and progress on stderr."""
    assert run(["up", "--detach", "-o", "json"]) == 0

    captured = capsys.readouterr()
    assert json.loads(captured.out)["kind"] == "Mesh"
    assert "Warning: loopback it is" in captured.err
    assert fabric == [("start", {"nodes": 2, "fabric": "auto", "cni": "builtin"})]
    assert any(one["metadata"]["name"] == "bookinfo" for one in mesh.asked("apply")["objects"])
    assert mesh.asked("wait_ready")["pods"] == 1


def test_up_with_a_bad_manifest_starts_nothing(
    mesh: FakeMesh, fabric: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """65 before the first namespace is made."""
    (tmp_path / "bad.yaml").write_text("kind: Pod\nkind: Pod\n")

    assert run(["up", "-f", str(tmp_path / "bad.yaml")]) == 65
    assert fabric == []


def test_up_that_fails_half_way_leaves_nothing(
    mesh: FakeMesh, fabric: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Pods that never get ready must not leave a mesh behind."""
    mesh.answers["wait_ready"] = AmbientError("not ready: x")

    assert run(["up", "--detach"]) == 1
    assert fabric[-1] == ("down", str(mesh.run_dir))
    assert "Error: not ready: x" in capsys.readouterr().err


def test_up_stays_until_the_mesh_ends(
    mesh: FakeMesh, fabric: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody else's ``down`` ends it without an error."""
    monkeypatch.setattr(clean, "running", lambda _where: None)

    assert run(["up"]) == 0
    assert "The mesh has ended." in capsys.readouterr().err


@pytest.mark.parametrize(("end", "code"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_ctrl_c_and_sigterm_take_it_down(
    mesh: FakeMesh,
    fabric: list[Any],
    end: BaseException,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Clean, and with the code that shells know."""

    def interrupt(_where: str) -> None:
        raise end

    monkeypatch.setattr(clean, "running", interrupt)

    try:
        found = run(["up"])
    except SystemExit as exc:
        found = int(str(exc.code))
    assert found == code
    assert fabric[-1] == ("down", str(mesh.run_dir))


def test_down_and_clean(
    mesh: FakeMesh, fabric: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line each."""
    monkeypatch.setattr(clean, "clean", lambda _where: clean.Cleaned(killed=1, removed=True))

    assert run(["down"]) == 0
    assert capsys.readouterr().out == "√ mesh stopped\n"
    assert run(["clean"]) == 0
    assert capsys.readouterr().out.startswith("√ removed what was left in ")


def test_clean_finds_what_a_killed_bench_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its mesh has a run directory of its own; one whose bench still runs is left alone."""
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "run"))
    left, used = tmp_path / f"run-bench-{2**22 + 1}", tmp_path / f"run-bench-{os.getpid()}"
    left.mkdir()
    used.mkdir()

    assert run(["clean", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["benches"] == [str(left)]
    assert (left.exists(), used.exists()) == (False, True)
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "no" / "run"))
    assert run(["clean"]) == 0


def test_exec_becomes_the_command(
    mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its signals, terminal and exit code are the command's; options behind -- are its own."""
    ran: list[list[str]] = []
    monkeypatch.setattr(os, "execvp", lambda _file, argv: ran.append(argv))
    monkeypatch.setattr(clean, "running", lambda _where: Record())

    assert run(["exec", "client", "-n", "shop", "--", "curl", "-n", "http://x"]) == 0
    assert ran[0][-3:] == ["curl", "-n", "http://x"]
    assert "4242" in ran[0]
    assert "4711" in ran[0]


@pytest.mark.parametrize("pods", [[], [{**POD, "status": {"phase": "Pending"}}]], ids=["none", "pending"])
def test_exec_in_a_pod_that_does_not_run(
    mesh: FakeMesh, pods: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Said, with the next step."""
    mesh.answers["get"] = pods
    monkeypatch.setattr(clean, "running", lambda _where: Record())

    assert run(["exec", "client", "-n", "shop", "--", "true"]) == 1
    assert "ambient " in capsys.readouterr().err
