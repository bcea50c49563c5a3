"""Forks of init: how a program gets into its namespaces, and what it leaves behind on the way.

Standard library only. Theory of operation: init forks a *messenger*, which enters or makes the
namespaces and forks the *program*; a PID namespace applies to children only. Both tell init about
the program over one close-on-exec pipe ("pid N" as init knows it, "host N" as the world knows it,
or "error ..."), so that the end of file says: it runs. The messenger leaves, and init inherits the
program as its child.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Sequence
from typing import NoReturn

from ambient.fabric import procfs, syscalls
from ambient.fabric.launch import Launch
from ambient.fabric.syscalls import Namespace

POD_NAMESPACES = Namespace.NET | Namespace.MOUNT | Namespace.PID | Namespace.UTS


def spawn(prepare: Callable[[], None], become: Callable[[int], None]) -> tuple[int, int]:
    """Run *become* in a new process, after *prepare* in the process that forks it.

    Args:
        prepare: Enters or makes namespaces.
        become: Execs; or closes the pipe it is given when it is ready, and lives on.

    Returns:
        The PID here and the host PID.

    Raises:
        OSError: it did not come to run; the message says where.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    messenger = os.fork()
    if messenger == 0:
        os.close(reader)
        _messenger(prepare, become, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        words = dict(line.split(" ", 1) for line in pipe.read().decode().splitlines())
    os.waitpid(messenger, 0)
    if "error" in words or "host" not in words:
        raise OSError(words.get("error", "it ended before it ran"))
    return int(words["pid"]), int(words["host"])


def spawn_beside(become: Callable[[int], None]) -> tuple[int, int]:
    """The same without namespaces: a child of this very process, that dies with it.

    Raises:
        OSError: it did not come to run.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    program = os.fork()
    if program == 0:
        os.close(reader)
        syscalls.die_with_parent(signal.SIGKILL)
        _program(become, writer, os.open("/proc", os.O_PATH | os.O_CLOEXEC))
    os.close(writer)
    with open(reader, "rb") as pipe:
        words = dict(line.split(" ", 1) for line in pipe.read().decode().splitlines())
    if "error" in words:
        os.waitpid(program, 0)
        raise OSError(words["error"])
    return program, int(words["host"])


def _messenger(prepare: Callable[[], None], become: Callable[[int], None], writer: int) -> NoReturn:
    try:
        proc = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
        prepare()
        program = os.fork()
        if program == 0:
            _program(become, writer, proc)
        os.write(writer, f"pid {program}\n".encode())
    except BaseException as exc:  # the end of a forked process: nobody above may see it
        _report(writer, exc)
    os._exit(0)


def _program(become: Callable[[int], None], writer: int, proc: int) -> NoReturn:
    try:
        os.write(writer, f"host {procfs.host_pid(proc)}\n".encode())
        become(writer)
    except BaseException as exc:  # as above
        _report(writer, exc)
    os._exit(127)


def _report(writer: int, exc: BaseException) -> None:
    text = " ".join(str(exc).split()) or type(exc).__name__
    os.write(writer, f"error {text}\n".encode())


def launch(
    request: Launch, fds: Sequence[int], *, confined: bool, nested: bool, contained: bool = True
) -> tuple[int, int]:
    """Start a program as :class:`Launch` says.

    Args:
        fds: What came with the request.
        confined: Whether a program in a pod runs as root and must be bounded.
        nested: Whether pods have user namespaces of their own.
        contained: Whether this process is PID 1 of a namespace that ends with it.
    """
    log = os.open(request.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def prepare() -> None:
        if request.pod:
            enter_pod(request.pod, nested=nested)
        elif request.netns:
            syscalls.setns(fds[0], Namespace.NET)

    def become(_writer: int) -> None:
        _standard_streams(log)
        environment = dict(request.env) | _inherit(request, fds)
        if request.pod:
            drop_privileges(confined=confined)
        os.setsid()
        _change_directory(request.cwd)
        exec_program(request.argv, environment)

    try:
        return spawn(prepare, become) if contained else spawn_beside(become)
    finally:
        os.close(log)


def _inherit(request: Launch, fds: Sequence[int]) -> dict[str, str]:
    passed = fds[1:] if request.netns else fds
    for fd in passed:
        os.set_inheritable(fd, True)
    return {name: str(fd) for name, fd in zip(request.fd_names, passed, strict=True)}


def enter_pod(pause: int, *, nested: bool) -> None:
    """Enter every namespace that *pause* holds."""
    pidfd = os.pidfd_open(pause)
    user = Namespace.USER if nested else Namespace(0)
    syscalls.setns(pidfd, POD_NAMESPACES | user)
    os.close(pidfd)


def drop_privileges(*, confined: bool) -> None:
    """Leave a program of a pod no way to more power than it starts with.

    As an ordinary uid of a nested user namespace it loses all capabilities by exec already.
    """
    if confined:
        syscalls.keep_capabilities(syscalls.CONTAINER_CAPABILITIES)
    syscalls.no_new_privileges()


def exec_program(argv: Sequence[str], environment: dict[str, str]) -> NoReturn:
    """Become *argv* with signals as a program expects them.

    Raises:
        FileNotFoundError: there is no such program; a shell would say 127.
        OSError: there is one, and it cannot be run; a shell would say 126.
    """
    for number in (signal.SIGPIPE, signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    try:
        os.execvpe(argv[0], list(argv), environment)
    except PermissionError:
        # Also what a directory of PATH that we may not search ends in, which says nothing of the program.
        if "/" in argv[0] or _is_on_path(argv[0], environment.get("PATH", os.defpath)):
            raise
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0]) from None


def _is_on_path(program: str, path: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, program)) for folder in path.split(os.pathsep))


def _standard_streams(log: int) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    for fd, number in ((null, 0), (log, 1), (log, 2)):
        os.dup2(fd, number)


def _change_directory(path: str) -> None:
    try:
        os.chdir(path)
    except OSError:
        os.chdir("/")
