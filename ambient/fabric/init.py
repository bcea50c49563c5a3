"""PID 1 of a mesh: starts and reaps every process, and takes all of them with it.

Standard library only, one thread, no trio: it must outlive everybody's mistakes. It starts what the
supervisor asks for (``launch.py``), reports exits, and when the supervisor is gone it kills what is
left and ends; the kernel then removes every namespace. If init itself is killed, the kernel kills
the rest of its PID namespace.

It keeps the outer /proc mounted, so the PIDs it reports beside its own are those people see.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from ambient.engine.rights import descriptors, room
from ambient.fabric import child, pause, syscalls
from ambient.fabric.launch import MAX_FDS, MAX_PACKET_BYTES, Launch, decode_launch, decode_pause

# How long the kernel may take to end processes after SIGKILL; picked, not measured.
REAP_SECONDS = 10.0


class Init:
    """The loop: requests from the supervisor, deaths from the kernel.

    Args:
        nested: Whether pods get user namespaces of their own (a rootless mesh).
        contained: Whether this is PID 1 of a namespace; False for the loopback fabric.
    """

    def __init__(self, run_dir: str, *, nested: bool, contained: bool = True) -> None:
        self._run_dir = run_dir
        self._contained = contained
        self._nested = nested
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # PIDs that are ours to signal: started and not yet reaped.
        self._living: set[int] = set()
        self._supervisor = 0
        self._supervisor_status: int | None = None

    def run(self, supervisor: Sequence[str], environment: dict[str, str], fds: Sequence[int]) -> bool:
        """Start the supervisor and serve it; return whether it ended well."""
        wake_reader, wake_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask_supervisor_to_stop)
        self._start_supervisor(supervisor, environment, fds)
        poll = select.poll()
        poll.register(self._ours, select.POLLIN)
        poll.register(wake_reader, select.POLLIN)
        while self._supervisor_status is None:
            ready = {fd for fd, _ in poll.poll()}
            if wake_reader in ready:
                with suppress(BlockingIOError):
                    os.read(wake_reader, 4096)
            # Answers before exits: nobody may hear of a death before the birth.
            if self._ours.fileno() in ready and not self._serve_one():
                self._await_supervisor()
                break
            self._reap()
        return self._supervisor_status == 0

    def _await_supervisor(self) -> None:
        """Learn how a supervisor ended that has closed its socket, which it does just before."""
        deadline = time.monotonic() + REAP_SECONDS
        while self._supervisor_status is None and time.monotonic() < deadline:
            self._reap()
            time.sleep(0.005)

    def _start_supervisor(self, argv: Sequence[str], environment: dict[str, str], fds: Sequence[int]) -> None:
        request = Launch(
            argv=tuple(argv),
            env=environment,
            log=f"{self._run_dir}/logs/supervisor.log",
            fd_names=("AMBIENT_INIT_FD", "AMBIENT_READY_FD"),
        )
        given = (self._theirs.fileno(), *fds)
        self._supervisor, _ = self._launch(request, given, confined=False)
        self._living.add(self._supervisor)
        self._theirs.close()
        for fd in fds:
            os.close(fd)

    def _ask_supervisor_to_stop(self, *_: object) -> None:
        if self._supervisor in self._living:
            os.kill(self._supervisor, signal.SIGTERM)

    def _serve_one(self) -> bool:
        """Answer one request; return whether the supervisor is still there."""
        try:
            data, ancillary, _, _ = self._ours.recvmsg(
                MAX_PACKET_BYTES, room(MAX_FDS), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return False
        if not data:
            return False
        fds = descriptors(ancillary)
        try:
            self._handle(json.loads(data), fds)
        finally:
            for fd in fds:
                os.close(fd)
        return True

    def _handle(self, message: dict[str, Any], fds: Sequence[int]) -> None:
        if message["kind"] == "signal":
            if message["pid"] in self._living:
                with suppress(ProcessLookupError):
                    os.kill(message["pid"], message["signal"])
            return
        try:
            pid, host_pid = self._start(message, fds)
        except (OSError, ValueError) as exc:
            self._say({"id": message["id"], "error": str(exc)})
            return
        self._living.add(pid)
        self._say({"id": message["id"], "pid": pid, "host_pid": host_pid})

    def _start(self, message: dict[str, Any], fds: Sequence[int]) -> tuple[int, int]:
        if message["kind"] == "adopt":
            return adopt(message["pid"]), message["host_pid"]
        if message["kind"] == "pause":
            return pause.start(decode_pause(message), fds, nested=self._nested)
        return self._launch(decode_launch(message), fds, confined=not self._nested)

    def _launch(self, request: Launch, fds: Sequence[int], *, confined: bool) -> tuple[int, int]:
        return child.launch(request, fds, confined=confined, nested=self._nested, contained=self._contained)

    def _say(self, message: dict[str, Any]) -> None:
        # A supervisor that is gone is noticed by reading; here it is only in the way.
        with suppress(OSError):
            self._ours.send(json.dumps(message).encode())

    def _reap(self) -> None:
        for pid, status in reap():
            known = pid in self._living
            self._living.discard(pid)
            if pid == self._supervisor:
                self._supervisor_status = status
            elif known:
                self._say({"exited": pid, "status": status})


def adopt(pid: int) -> int:
    """Return *pid* if it is a child of ours that lives: one that somebody else forked and left to us.

    Raises:
        ChildProcessError: it is not, or it has ended.
    """
    if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
        raise ChildProcessError(f"process {pid} has ended already")
    return pid


def reap() -> list[tuple[int, int]]:
    """Collect every child that has ended, as (PID, exit code or minus the signal)."""
    ended = []
    with suppress(ChildProcessError):
        while (result := os.waitpid(-1, os.WNOHANG))[0]:
            ended.append((result[0], os.waitstatus_to_exitcode(result[1])))
    return ended


def kill_everything() -> None:
    """Kill all that descends from this process and wait until it is gone."""
    deadline = time.monotonic() + REAP_SECONDS
    while time.monotonic() < deadline:
        _kill_children()
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.005)
        except ChildProcessError:
            return


def _kill_children() -> None:
    if os.getpid() == 1:
        with suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        return
    # Outside a PID namespace -1 would mean every process of this user. The orphans of those we kill
    # become our children, so that a few rounds find all.
    with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
        for pid in file.read().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def main(
    run_dir: str,
    fds: Sequence[int],
    environment: dict[str, str],
    *,
    nested: bool,
    contained: bool = True,
    supervisor: Sequence[str] = ("-P", "-m", "ambient.fabric.supervisor"),
) -> NoReturn:
    """Be PID 1 until the mesh ends; never returns.

    Args:
        fds: One descriptor on which the supervisor tells that it is ready.
        environment: For the supervisor; how the mesh is to be is in it.
        supervisor: What Python is to run.
    """
    syscalls.set_process_name(syscalls.INIT_NAME)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    went_well = False
    try:
        went_well = Init(run_dir, nested=nested, contained=contained).run(
            (sys.executable, *supervisor), environment, fds
        )
    finally:
        kill_everything()
        if went_well:
            shutil.rmtree(run_dir, ignore_errors=True)
        os._exit(0 if went_well else 1)
