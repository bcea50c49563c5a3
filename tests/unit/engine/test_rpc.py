"""Calls over unix sockets: answers, errors, streams, descriptors, and going away."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ambient.engine.rpc import AdminClient, Call, RpcError, serve_admin
from ambient.errors import ConfigError, Denied, Unavailable
from ambient.wire.frames import encode


async def echo(call: Call) -> Any:
    return call.params


async def who(call: Call) -> Any:
    return [call.peer_pid, call.peer_uid, call.method]


async def inodes(call: Call) -> Any:
    found = [os.fstat(fd).st_ino for fd in call.fds]
    for fd in call.fds:
        os.close(fd)
    return found


async def fail(call: Call) -> Any:
    match call.params["how"]:
        case "config":
            raise ConfigError("a.yaml:3: no")
        case "unavailable":
            raise Unavailable("not yet")
        case "denied":
            raise Denied("no")
        case "code":
            raise RpcError(124, "too late")
        case _:
            raise ZeroDivisionError("a bug")


async def counting(call: Call) -> Any:
    for number in range(call.params["count"]):
        await call.event(number)
    return "done"


class Hanging:
    """A method that never answers, and knows when it was cancelled."""

    def __init__(self) -> None:
        self.cancelled = trio.Event()

    async def __call__(self, call: Call) -> Any:
        await call.event("started")
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()


async def huge(call: Call) -> Any:
    return bytes(5_000_000)


METHODS: dict[str, Any] = {
    "echo": echo,
    "who": who,
    "inodes": inodes,
    "fail": fail,
    "counting": counting,
    "huge": huge,
}


@asynccontextmanager
async def served(path: Path, **more: Any) -> AsyncIterator[AdminClient]:
    bugs: list[Exception] = []
    async with trio.open_nursery() as nursery:
        serve = lambda task_status: serve_admin(  # noqa: E731
            path, METHODS | more, on_failure=bugs.append, task_status=task_status
        )
        await nursery.start(lambda task_status: serve(task_status))
        async with AdminClient.connect(path) as client:
            yield client
        nursery.cancel_scope.cancel()


async def test_a_call_and_its_answer(tmp_path: Path) -> None:
    """The socket is the owner's only; the server knows the caller's process."""
    async with served(tmp_path / "s") as client:
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
        assert await client.call("echo", a=1, b=["x"]) == {"a": 1, "b": ["x"]}
        assert await client.call("who") == [os.getpid(), os.geteuid(), "who"]


@pytest.mark.parametrize(
    ("how", "kind", "code"),
    [
        ("config", ConfigError, None),
        ("unavailable", Unavailable, None),
        ("denied", RpcError, 1),
        ("code", RpcError, 124),
        ("bug", RpcError, 1),
    ],
)
async def test_errors_arrive_as_what_they_were(tmp_path: Path, how: str, kind: Any, code: Any) -> None:
    """The command line exits with the code that the method meant; a bug ends only its call."""
    async with served(tmp_path / "s") as client:
        with pytest.raises(kind) as caught:
            await client.call("fail", how=how)
        assert getattr(caught.value, "code", None) == code
        with pytest.raises(RpcError, match="too large"):
            await client.call("huge")
        with pytest.raises(RpcError, match="no method 'nothing'"):
            await client.call("nothing")
        assert await client.call("echo") == {}


async def test_a_stream_and_its_result(tmp_path: Path) -> None:
    """Progress first, the result last; a slow reader slows the method down, not the memory."""
    async with served(tmp_path / "s") as client:
        async with client.stream("counting", count=2000) as stream:
            assert [event async for event in stream] == list(range(2000))
        assert stream.result == "done"
        assert await client.call("counting", count=3) == "done"


async def test_leaving_a_stream_cancels_its_method(tmp_path: Path) -> None:
    """Ctrl-C at the desk ends the work at the other end."""
    hanging = Hanging()
    async with served(tmp_path / "s", hang=hanging) as client:
        async with client.stream("hang") as stream:
            assert await anext(stream) == "started"
        with trio.fail_after(5):
            await hanging.cancelled.wait()
        assert await client.call("echo") == {}


async def test_calls_run_side_by_side(tmp_path: Path) -> None:
    """A long wait does not block a short question."""
    hanging = Hanging()
    async with served(tmp_path / "s", hang=hanging) as client, client.stream("hang"):
        assert await client.call("echo", x=1) == {"x": 1}


async def test_descriptors_travel_beside_their_call(tmp_path: Path) -> None:
    """``attach`` hands a daemon's socket to control."""
    near, far = socket.socketpair()
    with near, far:
        wanted = [os.fstat(near.fileno()).st_ino, os.fstat(far.fileno()).st_ino]
        async with served(tmp_path / "s") as client:
            assert await client.call("inodes", fds=[near.fileno(), far.fileno()]) == wanted
            assert await client.call("inodes", fds=[near.fileno()]) == wanted[:1]
            with pytest.raises(RpcError):
                await client.call("nothing", fds=[near.fileno()])


async def test_a_socketpair_needs_no_path() -> None:
    """The supervisor and control share one; its end ends the serving."""
    near, far = socket.socketpair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_admin, far, METHODS)
        async with AdminClient.over(near) as client:
            assert await client.call("echo", a=1) == {"a": 1}


async def test_nobody_there(tmp_path: Path) -> None:
    """Exit code 69, and the path that was tried."""
    with pytest.raises(Unavailable, match="nobody answers at"):
        async with AdminClient.connect(tmp_path / "none"):
            pass


async def test_a_server_that_goes_away() -> None:
    """Whoever waits learns of it; whoever asks later too."""
    near, far = socket.socketpair()
    async with AdminClient.over(near) as client, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Unavailable):
                await client.call("echo")

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        far.close()
        await trio.testing.wait_all_tasks_blocked()
        await ask()


@pytest.mark.parametrize(
    "data",
    [b"\xff\xff\xff\xff", encode({"id": 1}), encode({"id": 1, "method": "echo", "params": {}, "fds": 3})],
)
async def test_a_broken_caller_ends_only_its_connection(tmp_path: Path, data: bytes) -> None:
    """The others go on, the daemon too."""
    async with served(tmp_path / "s") as client:
        with trio.socket.socket(socket.AF_UNIX) as stranger:
            await stranger.connect(str(tmp_path / "s"))
            await stranger.send(data)
            assert await stranger.recv(100) == b""
        assert await client.call("echo") == {}


async def test_without_a_hook_a_bug_is_not_swallowed() -> None:
    """A test, or a daemon that prefers to end, sees it."""
    near, far = socket.socketpair()

    async def both() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_admin, far, METHODS)
            async with AdminClient.over(near) as client:
                await client.call("fail", how="bug")

    with pytest.raises(BaseExceptionGroup) as caught:
        await both()
    assert caught.group_contains(RuntimeError, match="method 'fail' failed")
