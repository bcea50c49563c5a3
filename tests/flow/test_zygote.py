"""The process that ztunnels are forked from: one thread, nothing inherited that is not theirs."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from ztunnel.zygote import NAMES, ZYGOTE_FD

SECONDS = 30.0


@contextmanager
def zygote(log: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(SECONDS)
    with ours, theirs, log.open("wb") as output:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("AMBIENT")}
        process = subprocess.Popen(
            [sys.executable, "-m", "ztunnel.zygote"],
            env=environ | {ZYGOTE_FD: str(theirs.fileno())},
            pass_fds=[theirs.fileno()],
            stderr=output,
            cwd=Path(__file__).parents[2],
        )
        theirs.close()
        try:
            yield process, ours
        finally:
            process.kill()
            process.wait()


def ask(sock: socket.socket, fds: list[int]) -> dict[str, object]:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    sock.sendmsg([b"f"], rights)
    answer: dict[str, object] = json.loads(sock.recv(4096))
    return answer


async def ended(pid: int) -> None:
    """Return when the orphan *pid* is no more; whoever adopted it may be slow to bury it."""
    with trio.fail_after(SECONDS):
        while True:
            try:
                state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                return
            if state in "ZX":
                return
            await trio.sleep(0.01)


async def test_a_child_waits_for_the_word_and_is_a_ztunnel_then(tmp_path: Path) -> None:
    """Who is to report its end must know of it before it can end."""
    with zygote(tmp_path / "log") as (process, sock):
        ours, control = socket.socketpair()
        ready, ready_writer = os.pipe()
        go, go_writer = os.pipe()

        born = ask(sock, [control.fileno(), ready_writer, go])

        pid = int(str(born["pid"]))
        assert born == {"pid": pid, "host_pid": pid}
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert "Threads:\t1\n" in status, "a fork takes one thread with it, and leaves locks behind"
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] != str(process.pid)
        for fd in (control.detach(), ready_writer, go):
            os.close(fd)
        # Control goes away at once: the child says so, under its own name, and ends.
        ours.close()
        os.write(go_writer, b"g")
        os.close(go_writer)
        await ended(pid)
        assert os.read(ready, 10) == b""
        os.close(ready)
        assert "ztunnel: control went away" in (tmp_path / "log").read_text()


async def test_without_the_word_it_ends(tmp_path: Path) -> None:
    """The supervisor died in between."""
    with zygote(tmp_path / "log") as (_process, sock):
        go, go_writer = os.pipe()
        null = os.open("/dev/null", os.O_RDWR)
        born = ask(sock, [null, null, go])
        for fd in (null, go, go_writer):
            os.close(fd)
        await ended(int(str(born["pid"])))


@pytest.mark.parametrize("count", [0, 1, len(NAMES), len(NAMES) + 2])
def test_another_number_of_descriptors_is_refused(tmp_path: Path, count: int) -> None:
    """Neither more nor less than it knows what to do with; and it goes on."""
    with zygote(tmp_path / "log") as (process, sock):
        null = os.open("/dev/null", os.O_RDWR)
        assert f"{count} descriptors" in str(ask(sock, [null] * count)["error"])
        assert f"{count} descriptors" in str(ask(sock, [null] * count)["error"])
        os.close(null)
        assert process.poll() is None


def test_it_ends_with_its_supervisor(tmp_path: Path) -> None:
    """Nobody else could ask it for anything."""
    with zygote(tmp_path / "log") as (process, sock):
        sock.close()
        assert process.wait(SECONDS) == 0
