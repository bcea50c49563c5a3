"""What a program is started as, and what is said of one that cannot be."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BECOME = """
import sys
from ambient.fabric.child import exec_program
try:
    exec_program(sys.argv[2:], {"PATH": sys.argv[1]})
except OSError as exc:
    print(type(exc).__name__)
"""


def become(path: Path, program: str) -> str:
    """What becoming *program* printed, or the name of the exception."""
    done = subprocess.run(
        [sys.executable, "-c", BECOME, str(path), program], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("works", "hello"),
        ("nonesuch", "FileNotFoundError"),
        ("folder", "FileNotFoundError"),
        ("locked", "PermissionError"),
        ("./folder", "FileNotFoundError"),
        ("/", "PermissionError"),
    ],
)
def test_not_found_is_told_from_not_allowed(tmp_path: Path, program: str, said: str) -> None:
    """Scripts tell 127 from 126; what PATH holds besides the program must not blur it."""
    (tmp_path / "works").write_text("#!/bin/sh\necho hello\n")
    (tmp_path / "works").chmod(0o755)
    (tmp_path / "locked").write_text("#!/bin/sh\n")
    (tmp_path / "locked").chmod(0o644)
    (tmp_path / "folder").mkdir()

    assert become(tmp_path, program) == said
