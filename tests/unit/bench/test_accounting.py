"""What processes cost, by real processes and by files that look like theirs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ambient.bench import accounting, machine


def test_the_clock_of_a_process_is_its_cpu_time() -> None:
    """Nanoseconds, and the same clock the process itself reads."""
    before = accounting.cpu_ns(os.getpid())
    end = time.process_time_ns() + 5_000_000
    while time.process_time_ns() < end:
        pass

    assert accounting.cpu_ns(os.getpid()) - before >= 5_000_000


def test_ended_threads_still_count() -> None:
    """What schedstat of the living threads forgets."""
    code = (
        "import threading,time,sys\n"
        "def burn():\n"
        "    end=time.thread_time()+0.05\n"
        "    while time.thread_time()<end: pass\n"
        "t=threading.Thread(target=burn); t.start(); t.join(); print('x',flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        spent = accounting.cpu_ns(child.pid)
        child.communicate()

    assert spent > 50_000_000


def test_a_process_that_is_gone_says_so() -> None:
    """A proxy that died in a round makes the round invalid, not the run."""
    child = subprocess.Popen(["true"])
    child.wait()

    with pytest.raises(ProcessLookupError):
        accounting.cpu_ns(child.pid)


def test_memory_and_threads_of_this_process() -> None:
    """Shared pages make PSS at most RSS."""
    found = accounting.memory(os.getpid())

    assert 0 < found.pss_bytes <= found.rss_bytes
    assert accounting.threads(os.getpid()) >= 1


def test_files_without_the_fields_are_zero(tmp_path: Path) -> None:
    """A kernel thread has neither."""
    folder = tmp_path / "7"
    folder.mkdir()
    (folder / "smaps_rollup").write_text("x\n")
    (folder / "status").write_text("x\n")

    assert accounting.memory(7, tmp_path) == accounting.Memory(0, 0)
    assert accounting.threads(7, tmp_path) == 0


def test_the_machine_is_described(tmp_path: Path) -> None:
    """A result without its machine cannot be compared."""
    (tmp_path / "cpuinfo").write_text("processor: 0\nmodel name\t: Fast 9000\n")

    assert set(machine.describe()) == {"cpu", "cores", "kernel", "python", "openssl"}
    assert machine.cpu_model(tmp_path / "cpuinfo") == "Fast 9000"
    assert machine.cpu_model(tmp_path / "none") != ""
    assert machine.installed("no-such-package") is None


def test_processes_of_one_proxy_add_up() -> None:
    """Fair shares may be added; that is what they are for."""
    parts = [accounting.Memory(10, 100), accounting.Memory(5, 100)]

    assert accounting.total(parts) == accounting.Memory(15, 200)
