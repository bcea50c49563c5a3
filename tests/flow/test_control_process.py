"""``python -m ambient.control`` as its supervisor starts it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from ambient.engine.rpc import AdminClient

DEADLINE = 20.0


@contextmanager
def process(run_dir: Path) -> Iterator[tuple[subprocess.Popen[bytes], socket.socket]]:
    near, far = socket.socketpair()
    variables = {"AMBIENT_RUN_DIR": str(run_dir), "AMBIENT_FABRIC_FD": str(far.fileno())}
    command = [sys.executable, "-m", "ambient.control"]
    with near, far:
        started = subprocess.Popen(command, env={**os.environ, **variables}, pass_fds=[far.fileno()])
        far.close()
        try:
            yield started, near
        finally:
            started.kill()
            started.wait(DEADLINE)


async def test_it_serves_the_supervisor_and_the_desk_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """SIGTERM is a graceful stop, and no socket stays behind."""
    with process(tmp_path) as (control, near), trio.fail_after(DEADLINE):
        async with AdminClient.over(near) as supervisor:
            await supervisor.call("nodes", names=["node-1"])
            async with AdminClient.connect(tmp_path / "control.sock") as desk:
                status = await desk.call("status")
                silent = {"agent": False, "ztunnel": False, "attestation": None}
                assert status["links"] == [{"name": "node-1", **silent}]
            assert (tmp_path / "control.sock").stat().st_mode & 0o777 == 0o600
            control.send_signal(signal.SIGTERM)
            assert await trio.to_thread.run_sync(control.wait, DEADLINE) == 0
    assert not (tmp_path / "control.sock").exists()


async def test_it_ends_with_its_supervisor(tmp_path: Path) -> None:
    """Nobody else could ever reach the mesh again."""
    with process(tmp_path) as (control, near), trio.fail_after(DEADLINE):
        async with AdminClient.over(near) as supervisor:
            await supervisor.call("nodes", names=["node-1"])
        assert await trio.to_thread.run_sync(control.wait, DEADLINE) == 0


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "AMBIENT_FABRIC_FD is not set"),
        ({"AMBIENT_FABRIC_FD": "77"}, "is not an open descriptor"),
        ({"AMBIENT_FABRIC_FD": "0", "SECRET_TTL": "soon"}, "not a span of time"),
    ],
    ids=["alone", "no-descriptor", "lifetime"],
)
def test_what_it_cannot_start_with_is_one_line(
    variables: dict[str, str], reason: str, tmp_path: Path
) -> None:
    """No traceback for the operator."""
    near, far = socket.socketpair()
    environ = {**os.environ, "AMBIENT_RUN_DIR": str(tmp_path), **variables}
    with near, far:
        done = subprocess.run(
            [sys.executable, "-m", "ambient.control"],
            env=environ,
            stdin=far,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )

    assert done.returncode == 65
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1
