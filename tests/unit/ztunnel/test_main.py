"""``python -m ztunnel``: what whoever starts it wrongly gets to read."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ztunnel.__main__ import EXIT_CONFIG, EXIT_UNAVAILABLE, Lines, command

ROOT = Path(__file__).parents[3]


def start(pass_fd: int = -1, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AMBIENT")}
    return subprocess.run(
        [sys.executable, "-m", "ztunnel"],
        env=inherited | environ,
        pass_fds=[pass_fd] if pass_fd >= 0 else [],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        cwd=ROOT,
    )


@pytest.mark.parametrize(
    ("environ", "message"),
    [({}, "AMBIENT_CONTROL_FD"), ({"LOG_FORMAT": "xml"}, "LOG_FORMAT is 'xml'")],
    ids=["no-control", "nonsense"],
)
def test_a_wrong_environment_is_one_line_and_65(environ: dict[str, str], message: str) -> None:
    """Not a traceback."""
    done = start(**environ)

    assert done.returncode == EXIT_CONFIG
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_control_plane_that_leaves_at_once_is_69() -> None:
    """Before the first snapshot there is nothing to serve by."""
    ours, theirs = socket.socketpair()
    ours.close()
    with theirs:
        done = start(
            theirs.fileno(), AMBIENT_CONTROL_FD=str(theirs.fileno()), RUST_LOG="debug,h2=off", CA_ADDRESS="/x"
        )

    assert done.returncode == EXIT_UNAVAILABLE, done.stderr
    assert "set, but without effect in this ztunnel: CA_ADDRESS" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_log_line_has_ztunnels_shape() -> None:
    """Time, level, scope, message; the traceback of a bug below."""
    record = logging.LogRecord("ztunnel", logging.WARNING, "", 0, "no %s", ("agent",), None)
    record.created = 1.5
    assert Lines().format(record) == "1970-01-01T00:00:01.500000Z\twarn\tztunnel\tno agent"
    assert json.loads(Lines(as_json=True).format(record))["message"] == "no agent"
    try:
        raise ValueError("odd")
    except ValueError:
        record.exc_info = sys.exc_info()
    assert Lines().format(record).endswith("ValueError: odd")


@pytest.mark.parametrize("arguments", [["proxy", "--workers", "2"], ["proxy", "--workers=2"]])
def test_more_than_one_worker_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Better than to start with one and let the other cores be believed busy."""
    assert command(arguments) == 2
    assert capsys.readouterr().err == (
        "ztunnel: one process serves a node here; --workers takes no number but 1\n"
    )
