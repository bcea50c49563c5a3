"""The front door: exit codes, one-line errors, colours, and what works without a mesh."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from ambient.cli import main as front
from ambient.cli.main import run
from ambient.cli.session import Session, marks, wants_color


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMBIENT_RUN_DIR", str(tmp_path / "none"))


@pytest.mark.parametrize(
    "argv", [["status"], ["get", "pods"], ["down"], ["enroll", "ns/x"], ["exec", "p", "--", "true"]]
)
def test_no_mesh_is_69_and_says_how_to_start_one(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The commonest mistake has the next step in its line."""
    assert run(argv) == 69

    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: no mesh is running in ")
    assert "ambient " in line


@pytest.mark.parametrize(
    "argv",
    [
        ["--bogus"],
        ["nonsense"],
        ["get"],
        ["get", "pods", "-o", "xml"],
        ["get", "pods", "--timeout", "soon"],
        ["enroll"],
    ],
)
def test_wrong_usage_is_2_on_one_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the command whose help tells more."""
    assert run(argv) == 2

    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("--help")
    assert ".;" not in line


def test_a_reader_who_has_seen_enough_is_no_failure() -> None:
    """As in ``ambient ... | head``: nothing is said, and the code is a shell's for it."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody:
        command = [sys.executable, "-m", "ambient.cli", "version"]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, timeout=60)

    assert (done.returncode, done.stderr) == (141, b"")


def test_an_unknown_kind_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    """So that nobody has to look them up."""
    assert run(["get", "trees"]) == 2

    assert "pods" in capsys.readouterr().err


def test_clean_with_nothing_to_clean_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be run any number of times."""
    assert run(["clean"]) == 0

    assert capsys.readouterr().out == "Nothing to clean.\n"


def test_help_needs_no_import_of_the_commands() -> None:
    """Completion and scripts call this a hundred times: no trio, no yaml, no cryptography."""
    code = (
        "import sys; from ambient.cli.main import run; run(['--help']);"
        "print(sorted({'trio', 'yaml', 'ambient.cli.get'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr == "[]\n"
    assert all(name in done.stdout for name in front.COMMANDS)


def test_every_command_can_be_loaded_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong row in the table would show up only when used."""
    for name in front.COMMANDS:
        assert run([name, "--help"]) == 0
        assert "--run-dir" in capsys.readouterr().out


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """As kubectl does."""
    assert run([]) == 0

    assert "Commands:" in capsys.readouterr().out


def test_version_is_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    """For bug reports."""
    assert run(["version", "-o", "json"]) == 0

    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "Version"
    assert set(document["versions"]) == {"ambient", "envoy", "python"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each shell's own script."""
    assert run(["completion", shell]) == 0

    assert "_AMBIENT_COMPLETE" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (KeyboardInterrupt(), 130),
        (click.exceptions.Abort(), 130),
        (click.ClickException("two\nlines"), 1),
        (OSError(13, "Permission denied"), 1),
    ],
    ids=["ctrl-c", "abort", "click", "system"],
)
def test_every_end_has_its_code(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """130 for Ctrl-C, and never a traceback for what is not a bug."""

    def fail(**_args: object) -> None:
        raise raised

    monkeypatch.setattr(front.root, "main", fail)

    assert run(["status"]) == code
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hiding it would help nobody."""

    def fail(**_args: object) -> None:
        raise KeyError("bug")

    monkeypatch.setattr(front.root, "main", fail)

    with pytest.raises(KeyError):
        run(["status"])


def test_a_closed_pipe_is_quiet() -> None:
    """``ambient get pods | head -1`` is no error."""
    program = f"{sys.executable} -m ambient.cli.main completion bash | true"
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)

    assert done.stderr == ""


@pytest.mark.parametrize(
    ("choice", "environ", "wanted"),
    [
        ("auto", {}, None),
        ("auto", {"NO_COLOR": "1"}, False),
        ("auto", {"NO_COLOR": ""}, None),
        ("auto", {"TERM": "dumb"}, False),
        ("always", {"NO_COLOR": "1"}, True),
        ("never", {}, False),
    ],
)
def test_colour(choice: str, environ: dict[str, str], wanted: bool | None) -> None:
    """click does not know NO_COLOR; an explicit choice beats it."""
    assert wants_color(choice, environ) is wanted


def test_marks_are_ascii_where_the_terminal_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A C locale must not end in a UnicodeEncodeError."""
    assert marks()[0] == "√"
    monkeypatch.setattr(sys, "stdout", type("Plain", (), {"encoding": "ascii"})())

    assert marks() == ("[ok]", "[warn]", "[fail]")


def test_check_is_a_document(capsys: pytest.CaptureFixture[str]) -> None:
    """linkerd's shape, under our names."""
    code = run(["check", "-o", "json"])

    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "Check"
    checks = [check for one in document["categories"] for check in one["checks"]]
    assert {check["result"] for check in checks} <= {"success", "warning", "error"}
    assert all(set(check) == {"description", "result", "hint"} for check in checks)
    assert code == (1 if any(check["result"] == "error" for check in checks) else 0)
    run(["check", "--color", "never"])
    assert "Status check results are" in capsys.readouterr().out


def test_the_run_dir_option_beats_the_environment(tmp_path: Path) -> None:
    """The nearest word wins."""
    assert Session().where == tmp_path / "none"
    assert Session(run_dir=Path("x")).where == Path.cwd() / "x"
