"""Waiting for a CPU as the kernel counts it."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from ambient.engine.cpu_wait import cpu_wait


def test_the_second_field_is_what_was_waited(tmp_path: Path) -> None:
    (tmp_path / "71").mkdir()
    (tmp_path / "71" / "schedstat").write_text("9000000000 2500000000 17\n")

    assert cpu_wait(71, str(tmp_path)) == 2.5


@pytest.mark.parametrize("content", [None, "", "0", "x y z"])
def test_what_cannot_be_read_excuses_nothing(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "71").mkdir()
        (tmp_path / "71" / "schedstat").write_text(content)

    assert cpu_wait(71, str(tmp_path)) == 0.0


@pytest.mark.skipif(
    not Path("/proc/self/schedstat").exists(), reason="the kernel does not count (SCHED_INFO)"
)
def test_two_of_us_on_one_cpu_wait_for_each_other() -> None:
    deadline = time.monotonic() + 30
    child = os.fork()
    os.sched_setaffinity(child or 0, {min(os.sched_getaffinity(0))})
    if child == 0:
        while time.monotonic() < deadline:
            pass
        os._exit(0)
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        before = cpu_wait()
        while cpu_wait() < before + 0.01 and time.monotonic() < deadline:
            pass
        assert cpu_wait() >= before + 0.01
    finally:
        os.sched_setaffinity(0, allowed)
        os.kill(child, 9)
        os.waitpid(child, 0)
