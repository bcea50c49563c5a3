"""The admin socket for the command line: the newest ztunnel has the name, and only it takes it away."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest
import trio

from ambient.engine.pages import Answer
from tests.flow.loopback import until
from ztunnel.desk import bind, serve_desk

ROUTES = {"/x": {"GET": lambda query: Answer(200, "hello\n")}}


async def ask(path: Path) -> bytes:
    stream = await trio.open_unix_socket(path)
    async with stream:
        await stream.send_all(b"GET /x HTTP/1.1\r\n\r\n")
        return b"".join([data async for data in stream])


async def test_it_answers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """In place of what a crash left there."""
    path = tmp_path / "admin.sock"
    path.touch()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_desk, str(path), ROUTES)
        await until(lambda: stat.S_ISSOCK(path.stat().st_mode))
        assert (await ask(path)).endswith(b"hello\n")
        nursery.cancel_scope.cancel()

    assert os.listdir(tmp_path) == []


async def test_the_name_is_the_newest_ones(tmp_path: Path) -> None:
    """An older one that ends leaves it alone."""
    path = tmp_path / "admin.sock"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_desk, str(path), ROUTES)
        await until(path.exists)
        with bind(str(path)) as newest:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            assert newest.family == socket.AF_UNIX
    assert path.exists()


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("python3", path="/usr/bin:/bin") is None,
    reason="only root can be somebody else, and a Python that they can run is needed",
)
async def test_another_user_gets_no_answer(tmp_path: Path) -> None:
    """Even one that the file system lets through (A13 of the threat list)."""
    program = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(99))"
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "admin.sock"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_desk, str(path), ROUTES)
            await until(path.exists)
            os.chmod(path, 0o777)
            run = functools.partial(
                subprocess.run,
                ["/usr/bin/env", "python3", "-c", program, str(path)],
                user=65534,
                capture_output=True,
                cwd="/",
                env={"PATH": "/usr/bin:/bin"},
                check=False,
            )
            done = await trio.to_thread.run_sync(run)
            nursery.cancel_scope.cancel()
    assert (done.returncode, done.stdout) == (0, b"b''\n"), done.stderr


async def test_without_the_socket_the_rest_goes_on(tmp_path: Path) -> None:
    """A directory that is not there is one line in the log."""
    await serve_desk(str(tmp_path / "no" / "admin.sock"), ROUTES)
