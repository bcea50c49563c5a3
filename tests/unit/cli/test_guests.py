"""``enroll pid/PID`` and ``netns/PATH``: what the command line asks of the supervisor, and of control."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from ambient.cli.enrollment import where_is
from ambient.cli.main import run
from ambient.errors import ConfigError
from tests.unit.cli.fake_mesh import FakeMesh, Stream, fake_mesh

GUEST = {"namespace": "shop", "name": "nginx-71", "uid": "u"}
DONE: dict[str, Any] = {
    "mode": "ambient",
    "pods": [{"namespace": "shop", "name": "nginx-71", "node": "node-1", "enrolled": True, "restarts": 0}],
    "restarts": 0,
    "failed": 0,
}


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeMesh]:
    """A mesh that takes in everybody."""
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "run"))
    answers = {"adopt": GUEST, "find_guest": GUEST, "dismiss": {}, "enroll": Stream([DONE])}
    with fake_mesh(tmp_path / "run", answers) as made:
        yield made


@pytest.fixture
def stranger(tmp_path: Path) -> str:
    """A file that is not this process's network namespace; what it is, the supervisor decides."""
    path = tmp_path / "netns"
    path.touch()
    return str(path)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("pid/4711", (4711, "")),
        ("netns/web", (0, "/run/netns/web")),
        ("netns//var/run/netns/web", (0, "/var/run/netns/web")),
    ],
)
def test_targets(text: str, meant: tuple[int, str]) -> None:
    """A bare name is one of ``ip netns``."""
    assert where_is(text) == meant


@pytest.mark.parametrize("text", ["pid/", "pid/0", "pid/-1", "pid/x", "pid/\u0663", "netns/"])
def test_no_target(text: str) -> None:
    """Said before anything is asked of the mesh."""
    with pytest.raises(click.UsageError):
        where_is(text)


def test_a_guest_is_adopted_and_then_enrolled_as_a_pod(mesh: FakeMesh, stranger: str) -> None:
    """In the namespace of -n, as the service account that was named."""
    code = run(
        ["enroll", f"netns/{stranger}", "-n", "shop", "--service-account", "front", "--node", "node-2"]
    )

    assert code == 0
    assert mesh.asked("adopt") == {
        "pid": 0,
        "path": stranger,
        "namespace": "shop",
        "name": "",
        "service_account": "front",
        "node": "node-2",
    }
    assert mesh.asked("enroll")["targets"] == [{"kind": "pod", "namespace": "shop", "name": "nginx-71"}]
    assert [name for name, _ in mesh.calls] == ["adopt", "enroll"]


@pytest.mark.parametrize("answer", [{**DONE, "failed": 1}, ConfigError("port 15001 is taken")])
def test_a_guest_that_cannot_be_enrolled_is_forgotten(mesh: FakeMesh, stranger: str, answer: Any) -> None:
    """Or it would stand in every list, for nothing."""
    mesh.answers["enroll"] = answer if isinstance(answer, Exception) else Stream([answer])

    assert run(["enroll", f"netns/{stranger}", "-n", "shop"]) != 0

    assert mesh.asked("dismiss") == {"namespace": "shop", "name": "nginx-71"}


def test_a_released_guest_is_forgotten_when_it_has_left(mesh: FakeMesh, stranger: str) -> None:
    """The supervisor waits for its last connection."""
    assert run(["unenroll", f"netns/{stranger}", "-n", "shop"]) == 0

    assert [name for name, _ in mesh.calls] == ["find_guest", "enroll", "dismiss"]
    assert mesh.asked("enroll")["mode"] == "none"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pid/{own}"], "in your own network namespace"),
        (["pid/4194304"], "no such process"),
        (["netns//nowhere"], "no such file"),
    ],
    ids=["own", "no-process", "no-file"],
)
def test_refused_without_asking_the_mesh(
    mesh: FakeMesh, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """To capture the machine's own network would cut off whoever asks."""
    assert run(["enroll", *(each.format(own=os.getpid()) for each in arguments)]) == 65

    assert words in capsys.readouterr().err
    assert mesh.calls == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["pid/1", "netns/web", "--name", "x"],
        ["pid/1", "--mode", "sidecar"],
        ["pid/1", "svc/web"],
    ],
    ids=["one-name-for-two", "sidecar", "no-target-beside-it"],
)
def test_usage(mesh: FakeMesh, arguments: list[str]) -> None:
    """Nothing is adopted for a call that cannot be carried out."""
    assert run(["enroll", *arguments]) == 2
    assert mesh.calls == []


EXAMINED: dict[str, Any] = {
    **DONE["pods"][0],
    "enrolled": False,
    "reason": "would be ambient",
    "rules": "table inet ambient {\n}\n",
    "findings": [{"blocks": True, "reason": "port 15001 is taken by nginx (pid 71)", "hint": ""}],
    "established_connections": ["192.0.2.7:80 - 192.0.2.9:40000"],
    "established_connections_kept": 1,
}
FORECAST: dict[str, Any] = {**DONE, "dry_run": True, "existing": "keep", "blocked": 1, "skipped": {}}


def test_a_dry_run_looks_at_a_guest_and_takes_nobody_in(
    mesh: FakeMesh, stranger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rules, blockers and what would stay plaintext; control is not asked of what it does not know."""
    mesh.answers["examine"] = EXAMINED

    assert run(["enroll", f"netns/{stranger}", "-n", "shop", "--existing", "reset", "--dry-run"]) == 0

    assert [name for name, _ in mesh.calls] == ["examine"]
    assert (mesh.asked("examine")["path"], mesh.asked("examine")["existing"]) == (stranger, "reset")
    said = capsys.readouterr()
    for words in ("port 15001 is taken by nginx", "table inet ambient", "1 of 1 pods would not be enrolled"):
        assert words in said.out
    assert "nothing was changed" in said.err


def test_a_dry_run_counts_pods_and_guests_together(
    mesh: FakeMesh, stranger: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One document, whoever was asked."""
    mesh.answers |= {"examine": EXAMINED, "enroll": Stream([FORECAST])}

    assert run(["enroll", f"netns/{stranger}", "pod/web", "-n", "shop", "--dry-run", "-o", "json"]) == 0

    said = json.loads(capsys.readouterr().out)
    assert (said["blocked"], [pod.get("reason") for pod in said["pods"]]) == (2, [None, "would be ambient"])
    assert mesh.asked("enroll")["targets"] == [{"kind": "pod", "namespace": "shop", "name": "web"}]


def test_a_guest_that_is_enrolled_is_a_pod_for_a_dry_run(mesh: FakeMesh, stranger: str) -> None:
    """Control knows more of it than a look from outside could tell."""
    mesh.answers |= {
        "examine": {"known": {"namespace": "shop", "name": "nginx-71"}},
        "enroll": Stream([{**FORECAST, "blocked": 0}]),
    }

    assert run(["enroll", f"netns/{stranger}", "-n", "shop", "--dry-run"]) == 0

    assert [name for name, _ in mesh.calls] == ["examine", "enroll"]
    assert mesh.asked("enroll")["targets"] == [{"kind": "pod", "namespace": "shop", "name": "nginx-71"}]
    assert mesh.asked("enroll")["dry_run"]


def test_a_process_is_named_by_its_pid(mesh: FakeMesh, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its namespace goes along as a descriptor, opened here."""
    process = subprocess.Popen((sys.executable, "-c", "import time; time.sleep(60)"))
    monkeypatch.setattr("ambient.cli.enrollment.os.path.samestat", lambda _one, _other: False)
    try:
        assert run(["enroll", f"pid/{process.pid}", "-n", "shop", "--name", "web"]) == 0
    finally:
        process.kill()
        process.wait()

    asked = mesh.asked("adopt")
    assert (asked["pid"], asked["path"], asked["name"]) == (process.pid, "", "web")
