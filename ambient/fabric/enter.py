"""Running a command inside a mesh that already runs, from any shell.

    python -m ambient.fabric.enter --init PID [--pod PID] [--network-only] -- COMMAND...

A process of its own, because a process with threads may not enter a user namespace, and a PID
namespace needs a fork. All PIDs are host PIDs.

* with ``--pod``: every namespace of that pod, as a program of the pod (no power over its network);
* with ``--pod --network-only``: the mesh's root in the pod's network, with the machine's own files
  and process list: for load generators and the like that must reach both worlds;
* without ``--pod``: the mesh's root in its outermost network: for captures on the links of nodes.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from ambient.fabric import child, syscalls
from ambient.fabric.syscalls import Namespace

# What a shell answers for a command that cannot be run (POSIX 2.8.2).
NOT_FOUND, NOT_EXECUTABLE = 127, 126


def command(init_pid: int, pod_pid: int, argv: Sequence[str], *, network_only: bool = False) -> list[str]:
    """The argument vector that runs *argv* inside; to be exec'ed or spawned.

    Args:
        init_pid: Host PID of the mesh's init (``rundir.Record.init_pid``).
        pod_pid: Host PID of any process of the pod, its pause process for one; 0 for the outer network.
        network_only: Enter no more than the network.
    """
    target = ["--pod", str(pod_pid)] if pod_pid else []
    only = ["--network-only"] if network_only else []
    module = [sys.executable, "-P", "-m", "ambient.fabric.enter"]
    return [*module, "--init", str(init_pid), *target, *only, "--", *argv]


def main(arguments: Sequence[str]) -> NoReturn:
    """Enter, run, and end as the command ended."""
    options = _parse(arguments)
    try:
        _become_owner(options.init)
        if options.pod and not options.network_only:
            _run_in_pod(options.pod, options.command)
        _run_in_network(options.init, options.pod or options.init, options.command)
    except OSError as exc:
        print(f"ambient: cannot enter: {exc}; is the mesh still running?", file=sys.stderr)
        sys.exit(69)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ambient.fabric.enter")
    parser.add_argument("--init", type=int, required=True)
    parser.add_argument("--pod", type=int, default=0)
    parser.add_argument("--network-only", action="store_true")
    parser.add_argument("command", nargs="+")
    return parser.parse_args(arguments)


def _become_owner(init_pid: int) -> None:
    """Drop from root to the owner of a rootless mesh, whose uid alone is mapped inside."""
    owner = os.stat(f"/proc/{init_pid}")
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.setgroups([])
        os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
        os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)


def _user_namespace(pid: int) -> Namespace:
    """The flag for entering the user namespace of *pid*; none if we are in it, which Linux refuses."""
    ours, theirs = (os.stat(f"/proc/{name}/ns/user") for name in ("self", pid))
    same = (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino)
    return Namespace(0) if same else Namespace.USER


def _run_in_pod(pod: int, argv: Sequence[str]) -> NoReturn:
    user = _user_namespace(pod)
    pidfd = os.pidfd_open(pod)
    syscalls.setns(pidfd, child.POD_NAMESPACES | user)
    _run(argv, lambda: child.drop_privileges(confined=not user))


def _run_in_network(init: int, target: int, argv: Sequence[str]) -> NoReturn:
    network = os.open(f"/proc/{target}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    if user := _user_namespace(init):
        syscalls.setns(os.pidfd_open(init), user)
    syscalls.setns(network, Namespace.NET)
    _exec(argv)


def _run(argv: Sequence[str], prepare: Callable[[], None]) -> NoReturn:
    """Fork into the PID namespace, wait, and pass on how it ended."""
    program = os.fork()
    if program == 0:
        prepare()
        syscalls.die_with_parent(signal.SIGKILL)
        _exec(argv)
    for number in (signal.SIGINT, signal.SIGQUIT):
        # The terminal sends these to both of us; the command decides what they mean.
        signal.signal(number, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: os.kill(program, received))
    code = os.waitstatus_to_exitcode(os.waitpid(program, 0)[1])
    sys.exit(code if code >= 0 else 128 - code)


def _exec(argv: Sequence[str]) -> NoReturn:
    try:
        child.exec_program(argv, dict(os.environ))
    except OSError as exc:
        print(f"ambient: {argv[0]}: {exc.strerror}", file=sys.stderr)
        os._exit(NOT_FOUND if isinstance(exc, FileNotFoundError) else NOT_EXECUTABLE)


if __name__ == "__main__":
    main(sys.argv[1:])
