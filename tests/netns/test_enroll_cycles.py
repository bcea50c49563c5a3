"""Fifty enrollments under live traffic lose nothing and leave nothing; the generator is the benchmark's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CYCLES = 50

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(300)]


def measure(*options: str) -> dict[str, object]:
    """One row of ``benchmarks/enroll.py``."""
    done = subprocess.run(
        [sys.executable, "benchmarks/enroll.py", "-o", "json", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    assert isinstance(row, dict)
    return row


def test_cycles_under_traffic_lose_nothing_and_leave_nothing() -> None:
    """New connections, 32 older than all rules, 32 at a time through the proxies; both families."""
    row = measure("--cycles", str(CYCLES), "--rules", "ambient", "--unenroll", "drain", "--rootless")

    zeroes = ("new_failed", "preexisting_reset", "through_proxy_cut", "lost_bytes", "leaked")
    assert {name: row[name] for name in zeroes} == dict.fromkeys(zeroes, 0), row
    assert row["enrollments_failed"] == 0
    assert row["cycles"] == CYCLES
    assert row["new_ok"] >= CYCLES  # type: ignore[operator]
    assert row["through_proxy"] == 32 * CYCLES / 10


def test_the_generator_sees_what_other_rules_lose() -> None:
    """A benchmark that could not count a loss would prove nothing: Istio's rules reset what is older."""
    row = measure("--cycles", "1", "--rules", "istio-published", "--unenroll", "drain", "--rootless")

    # Those of them that sent something while the rules stood; a busy machine leaves some quiet.
    assert row["preexisting_reset"] > 0
    assert row["lost_bytes"]
