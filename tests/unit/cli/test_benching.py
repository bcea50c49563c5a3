"""``ambient bench`` from the desk: which mesh it uses, what it leaves, what it writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ambient.bench import live
from ambient.cli import benching, lifecycle
from ambient.cli.main import run
from ambient.fabric import clean
from tests.unit.bench.fake_port import PLAIN, FakePort
from tests.unit.cli.fake_mesh import FakeMesh, fake_mesh

CLIENT = {
    "metadata": {
        "name": "client", "namespace": "bookinfo",
        "annotations": {"ambient.dev/load-target": "http://page:9080/", "ambient.dev/response-bytes": "1024"},
    },
    "status": {"ambient": {"mode": "ambient", "pid": 1}},
}  # fmt: skip
QUICKEST = ["--rate", "100", "--duration", "20", "--rounds", "5", "--no-judge"]


class Port(FakePort):
    """The fake with what the desk asks of a live mesh."""

    def __init__(self) -> None:
        super().__init__()
        self.status = {"fabric": "netns"}
        self.closed = False

    def close(self) -> None:
        """Remember it."""
        self.closed = True


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Port:
    """Stands for the live mesh."""
    made = Port()
    monkeypatch.setattr(live, "LiveMesh", lambda _where, _scenario: made)
    return made


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMesh]:
    """A mesh that runs already."""
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(clean, "running", lambda _where: object())
    with fake_mesh(tmp_path / "run", {"get": [CLIENT], "status": {"fabric": "netns"}}) as made:
        yield made


def test_a_running_mesh_is_used_and_left_as_it_was(
    mesh: FakeMesh, port: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was in ambient mode, so it is again."""
    assert run(["bench", "run", *QUICKEST, "-o", "json"]) == 0

    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["kind"] == "BenchRun"
    assert document["load"]["payload_bytes"] == 1024
    assert [turn.mode for turn in port.turns][-1] == "ambient"
    assert len(port.turns) == 21
    assert port.closed
    assert "round 5/5" in captured.err


def test_loopback_cannot_be_compared(mesh: FakeMesh, port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    """No wire to look at, no namespaces to measure in: said, not faked."""
    mesh.answers["status"] = {"fabric": "loopback"}

    assert run(["bench", "run", *QUICKEST]) == 1
    assert "needs network namespaces" in capsys.readouterr().err


def test_an_invalid_mode_is_exit_1(mesh: FakeMesh, port: Port, capsys: pytest.CaptureFixture[str]) -> None:
    """CI must not take it for a result."""
    assert port.wire is not None
    port.wire["sidecar"] = PLAIN

    assert run(["bench", "run", *QUICKEST]) == 1
    assert "sidecar (ambient) is invalid" in capsys.readouterr().out


def test_a_payload_is_not_forced_on_somebody_elses_mesh(
    mesh: FakeMesh, port: Port, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its workloads answer as their manifests say."""
    assert run(["bench", "run", "--payload", "10"]) == 2


@pytest.mark.parametrize("wrong", [["--modes", "x"], ["--rate", "0"], ["--duration", "soon"]])
def test_wrong_options_are_found_before_anything_starts(
    mesh: FakeMesh, port: Port, wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Usage, on one line."""
    assert run(["bench", "run", *wrong]) == 2
    assert port.turns == []


def test_without_a_mesh_it_starts_its_own_and_takes_it_down(
    tmp_path: Path, port: Port, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The one command of the README."""
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "none"))
    seen: dict[str, Any] = {}

    def bring_up(session: Any, parsed: Any, nodes: int) -> tuple[str, ...]:
        stack = fake_mesh(session.where, {"get": [CLIENT], "status": {"fabric": "netns"}})
        stack.__enter__()
        seen.update(where=session.where, parsed=parsed, nodes=nodes, stack=stack)
        return ("a note",)

    def take_down(where: str) -> clean.Cleaned:
        assert where == str(seen["where"])
        seen["stack"].__exit__(None, None, None)
        return clean.Cleaned()

    monkeypatch.setattr(lifecycle, "bring_up", bring_up)
    monkeypatch.setattr(clean, "clean", take_down)

    assert run(["bench", "run", *QUICKEST, "--payload", "77", "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert "Warning: a note" in captured.err
    assert len(port.turns) == 20
    assert seen["where"].name == f"none-bench-{os.getpid()}"
    sizes = {size for one in seen["parsed"].objects for size in _sizes(one.body)}
    assert sizes == {"77"}
    assert json.loads((tmp_path / "out" / "run.json").read_text())["scenario"] == "bookinfo"


def _sizes(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from [part] if key == benching.RESPONSE_BYTES else _sizes(part)


def test_a_run_can_be_read_back_and_compared(
    mesh: FakeMesh, port: Port, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twice the same load: do the ratios agree?"""
    out = tmp_path / "out"
    assert run(["bench", "run", *QUICKEST, "--out", str(out)]) == 0
    text = capsys.readouterr().out

    assert run(["bench", "report", str(out)]) == 0
    assert capsys.readouterr().out == text
    assert run(["bench", "report", str(out / "run.json"), "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("# bookinfo, ")
    assert run(["bench", "compare", str(out), str(out)]) == 0
    assert "true" in capsys.readouterr().out

    other = json.loads((out / "run.json").read_text())
    other["ratios"]["ambient/sidecar"]["latency_p50"] |= {"ci95": [7, 8]}
    (tmp_path / "other.json").write_text(json.dumps(other))
    assert run(["bench", "compare", str(out), str(tmp_path / "other.json")]) == 1


@pytest.mark.parametrize(
    "text", [None, "{", "[]", '{"kind": "Pod"}'], ids=["missing", "json", "list", "kind"]
)
def test_what_is_no_run_is_bad_input(
    tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """65, on one line."""
    if text is not None:
        (tmp_path / "run.json").write_text(text)

    assert run(["bench", "report", str(tmp_path)]) == 65
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_envoy_judges_where_it_is_installed() -> None:
    """Unless told otherwise."""
    asked = {"modes": "none", "duration": "1s", "engine": "ambient", "rate": 1.0, "rounds": 1}
    asked |= {"connections": 1, "seed": 1, "payload": None}

    assert benching.options_of({**asked, "judge": None}).judge is benching._envoy_is_here()
    assert benching.options_of({**asked, "judge": False}).judge is False
