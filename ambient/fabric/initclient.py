"""The supervisor's end of the conversation with init: processes as trio sees them."""

from __future__ import annotations

import itertools
import json
import math
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from ambient.engine.rights import rights
from ambient.errors import AmbientError
from ambient.fabric import launch, procfs

# init answers after exec, which is milliseconds; a machine under load may need seconds.
ANSWER_SECONDS = 30.0


class LaunchFailed(AmbientError):
    """The program did not come to run: not found, not executable, no such namespace."""


@dataclass(eq=False, slots=True)
class Process:
    """A running (or ended) child of init.

    Attributes:
        pid: Its number inside the mesh, which is what signals need.
        host_pid: Its number for people, and for paths under /proc.
        started: Unix seconds.
        status: Exit code, minus the signal's number, or None while it runs.
    """

    pid: int
    host_pid: int
    started: float
    status: int | None = None
    _ended: trio.Event = field(default_factory=trio.Event, repr=False)

    @property
    def running(self) -> bool:
        """Whether nothing is known of its end."""
        return self.status is None

    async def wait(self) -> int:
        """Wait for the end; return the exit code, or minus the signal's number."""
        await self._ended.wait()
        assert self.status is not None
        return self.status

    def end(self, status: int) -> None:
        """Note its end."""
        self.status = status
        self._ended.set()


class InitClient:
    """Asks init for processes. ``serve`` must run for anything to be answered.

    Args:
        sock: Our end of the SEQPACKET pair; becomes ours to close.

    Attributes:
        hurry: No process gets more than this many seconds to stop; lowered when the mesh goes down,
            where nobody is left to be served until the end.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.hurry = math.inf
        self._sock = trio.socket.from_stdlib_socket(sock)
        self._numbers = itertools.count(1)
        self._asking = trio.Lock()
        self._answers: dict[int, trio.MemorySendChannel[Process | LaunchFailed]] = {}
        self._processes: dict[int, Process] = {}

    @property
    def hurried(self) -> bool:
        """Whether the mesh goes down."""
        return self.hurry < math.inf

    async def serve(self) -> None:
        """Take init's answers and reports until cancelled."""
        while data := await self._sock.recv(launch.MAX_PACKET_BYTES):
            message = json.loads(data)
            if "exited" in message:
                process = self._processes.pop(message["exited"], None)
                if process is not None:
                    process.end(message["status"])
                continue
            self._answers.pop(message["id"]).send_nowait(self._outcome(message))
        raise AmbientError("init is gone")

    def _outcome(self, message: dict[str, Any]) -> Process | LaunchFailed:
        if "error" in message:
            return LaunchFailed(message["error"])
        process = Process(message["pid"], message["host_pid"], procfs.started(message["host_pid"]))
        # Here and not in the asking task: its end may be the very next message.
        self._processes[process.pid] = process
        return process

    async def start(self, request: launch.Launch, fds: Sequence[int] = ()) -> Process:
        """Start a program; it runs when this returns.

        Args:
            fds: As ``Launch.netns`` and ``Launch.fd_names`` say; they stay the caller's to close.

        Raises:
            LaunchFailed: it did not come to run.
        """
        return await self._ask("launch", request, fds)

    async def pause(self, request: launch.Pause, fds: Sequence[int] = ()) -> Process:
        """Make a pod's namespaces; the process returned holds them."""
        return await self._ask("pause", request, fds)

    async def adopt(self, pid: int, host_pid: int) -> Process:
        """Have init report the end of an orphan that is its child.

        Raises:
            LaunchFailed: it is not, or has ended.
        """
        return await self._send_request(lambda number: launch.encode_adopt(number, pid, host_pid), ())

    async def signal(self, process: Process, number: signal.Signals) -> None:
        """Signal *process*, unless init has seen its end."""
        message = {"kind": "signal", "pid": process.pid, "signal": int(number)}
        await self._sock.send(json.dumps(message).encode())

    async def stop(self, process: Process, patience: float) -> None:
        """SIGTERM, then SIGKILL after *patience* seconds; return when it has ended."""
        with trio.move_on_after(min(patience, self.hurry)):
            await self.signal(process, signal.SIGTERM)
            await process.wait()
            return
        await self.kill(process)

    async def kill(self, process: Process) -> None:
        """SIGKILL; return when it has ended."""
        await self.signal(process, signal.SIGKILL)
        await process.wait()

    async def _ask(self, kind: str, request: launch.Launch | launch.Pause, fds: Sequence[int]) -> Process:
        return await self._send_request(lambda number: launch.encode(kind, number, request), fds)

    async def _send_request(self, encode: Callable[[int], bytes], fds: Sequence[int]) -> Process:
        number = next(self._numbers)
        packet = encode(number)
        if len(packet) > launch.MAX_PACKET_BYTES:
            raise LaunchFailed(
                f"arguments and environment of {len(packet)} bytes, limit {launch.MAX_PACKET_BYTES}"
            )
        send, receive = trio.open_memory_channel[Process | LaunchFailed](1)
        self._answers[number] = send
        await self._send(packet, fds)
        with trio.fail_after(ANSWER_SECONDS):
            answer = await receive.receive()
        if isinstance(answer, LaunchFailed):
            raise answer
        return answer

    async def _send(self, packet: bytes, fds: Sequence[int]) -> None:
        async with self._asking:
            await self._sock.sendmsg([packet], rights(fds))
