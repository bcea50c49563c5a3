"""What people read before, at and after an enrollment."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ambient.cli.main import run
from tests.unit.cli.fake_mesh import FakeMesh, fake_mesh

RULES = "table inet ambient {\n}\n"
TAKEN = {"blocks": True, "reason": "port 15001 is taken by nginx (pid 7)", "hint": "free it"}
CONNECTIONS = [f"10.244.1.2:80 - 10.244.1.3:{port}" for port in range(40000, 40007)]


def line(name: str, **more: Any) -> dict[str, Any]:
    found = {"namespace": "shop", "name": name, "node": "node-1", "enrolled": False, "restarts": 0}
    return {
        **found,
        "established_connections_kept": 0,
        "duration_ms": 0,
        "reason": "would be ambient",
        **more,
    }


DRY = {
    "mode": "ambient", "existing": "keep", "dry_run": True, "restarts": 0, "failed": 0, "blocked": 1,
    "skipped": {"Kubernetes//Pod/shop/host#1": "the pod uses the host's network: its traffic is the node's"},
    "pods": [
        line("web", rules=RULES, findings=[TAKEN]),
        line(
            "api", rules=RULES, findings=[], established_connections_kept=7,
            established_connections=CONNECTIONS,
        ),
    ],
}  # fmt: skip
DONE = {
    "mode": "ambient", "existing": "keep", "restarts": 0, "failed": 1,
    "pods": [
        line("web", reason="port 15001 is taken by nginx (pid 7)"),
        line("api", enrolled=True, reason="", established_connections=CONNECTIONS),
    ],
}  # fmt: skip
LOST = {
    "metadata": {"name": "web", "namespace": "shop"},
    "status": {
        "ambient": {
            "mode": "ambient", "enrolled": False, "attestation": "lost", "repairs": 10,
            "plaintext_connections": 2, "reason": "its rules had to be repaired 10 times",
        }
    },
}  # fmt: skip


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMesh]:
    """A fake mesh where the commands look for one."""
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "run"))
    with fake_mesh(tmp_path / "run", {"enroll": DRY, "get": [LOST], "status": {}}) as made:
        yield made


def test_a_dry_run_says_what_is_in_the_way_and_shows_the_rules_once(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """250 pods with the same rules need them once."""
    assert run(["enroll", "namespace/shop", "--dry-run"]) == 0

    text = capsys.readouterr().out
    assert "× pod/web: port 15001 is taken by nginx (pid 7) (free it)" in text
    assert "‼ pod/api: 7 established connections would stay plaintext" in text
    assert text.count("table inet ambient") == 1
    assert "rules in web, api:" in text
    assert text.endswith("× namespace/shop (ambient): 1 of 2 pods would not be enrolled, 0 restarts\n")


def test_check_pre_fails_on_blockers_and_names_them(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1 before anything is done; what is only worth knowing does not count."""
    assert run(["check", "--pre", "namespace/shop", "-o", "json"]) == 1

    found = json.loads(capsys.readouterr().out)["categories"][-1]
    assert found["name"] == "namespace/shop"
    results = [(each["result"], each["description"]) for each in found["checks"]]
    assert results == [
        ("error", "pod/web: port 15001 is taken by nginx (pid 7)"),
        ("success", "pod/api would be ambient"),
        ("warning", "pod/api: 7 established connections would stay plaintext until they end"),
        ("error", "pod/host: the pod uses the host's network: its traffic is the node's"),
    ]


def test_check_pre_of_a_sound_namespace_succeeds(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing in the way is not an error."""
    mesh.answers["enroll"] = {"pods": [line("web", findings=[])], "skipped": {}}

    assert run(["check", "--pre", "namespace/shop"]) == 0
    assert "√ pod/web would be ambient" in capsys.readouterr().out


def test_the_result_lists_what_happened_to_older_connections(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str]
) -> None:
    """Kept is plaintext; a few are shown and the rest counted."""
    mesh.answers["enroll"] = DONE
    assert run(["enroll", "namespace/shop"]) == 1

    text = capsys.readouterr().out
    assert "pod/api: established connections kept, plaintext until they end:" in text
    assert f"    {CONNECTIONS[4]}\n    and 2 more\n" in text
    mesh.answers["enroll"] = {**DONE, "existing": "reset"}
    run(["enroll", "namespace/shop", "--existing", "reset"])
    assert "pod/api: established connections reset:" in capsys.readouterr().out
    assert mesh.asked("enroll")["existing"] == "reset"


def test_status_shows_who_is_lost_and_why(mesh: FakeMesh, capsys: pytest.CaptureFixture[str]) -> None:
    """Never outside in silence."""
    assert run(["status"]) == 0

    text = capsys.readouterr().out
    assert ["shop", "1", "0", "0", "1", "lost"] in [row.split() for row in text.splitlines()]
    row = next(row for row in text.splitlines() if row.startswith("shop/web"))
    assert row.split()[:4] == ["shop/web", "lost", "10", "2"]
    assert row.endswith("its rules had to be repaired 10 times")
