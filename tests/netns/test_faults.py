"""Daemons frozen, killed and replaced in random order under checksummed load, as the benchmark does it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ambient.fabric import boot

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(240)]

FAULTS = Path(__file__).parents[2] / "benchmarks" / "faults.py"


def test_a_seeded_run_of_faults_explains_every_failure() -> None:
    """No wrong byte, and nobody is cut who was not open when a ztunnel was killed."""
    arguments = ("--seed", "5", "--seconds", "12", "--rate", "30", "-o", "json")
    done = subprocess.run(
        [sys.executable, str(FAULTS), *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env=boot.daemon_environment(os.environ),
    )
    assert done.returncode == 0, done.stderr + done.stdout
    rows = {row["metric"]: row for row in json.loads(done.stdout)["rows"]}
    assert rows["failed_unexplained"]["value"] == rows["wrong_bytes"]["value"] == 0
    assert rows["connections"]["value"] == 420
    assert any(name.startswith(("kill_", "freeze_", "upgrade")) for name in rows)
