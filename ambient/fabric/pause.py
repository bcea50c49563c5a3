"""The process that is a pod: it holds the namespaces and is PID 1 of everything in them.

Standard library only; a fork of init that never execs, so that it shares init's memory.

What a program of the pod finds: its own network, host name, /etc/resolv.conf and process list; no
run directory of the mesh; scratch file systems where daemons like to write (so that a stock nginx
works for an ordinary user, and a root's one leaves nothing on the machine). Everything else is the
machine's own file system. What cannot be had (a container may forbid a fresh /proc) is done
without; a pod that cannot have its names resolved fails.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

from ambient.fabric import syscalls
from ambient.fabric.child import spawn
from ambient.fabric.launch import Pause
from ambient.fabric.syscalls import MountFlag, Namespace

# The first ordinary user of most distributions; nginx and others refuse or misbehave as uid 0
# where no other uid is mapped (reference measurements: ``chown ... 65534: Invalid argument``).
POD_UID = 1000
# Where stock daemons write: covered, with the directories found there made anew.
SCRATCH = ("/var/log", "/var/lib/nginx", "/var/cache/nginx", "/var/lib/redis")
# Where root (and the owner of a user namespace, for its network's part) could change the machine by
# writing a file, whatever its capabilities; the list is Docker's.
READ_ONLY = ("/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/sys")
# Where the new /run is put together: any directory that is there on every Linux (FHS 3.0).
_STAGING = ("/mnt", "/srv", "/media", "/opt")
_PRIVATE = MountFlag.NO_SUID | MountFlag.NO_DEVICES
_REMOUNT = MountFlag(0x20)


def start(request: Pause, fds: Sequence[int], *, nested: bool) -> tuple[int, int]:
    """Make a pod's namespaces; return the PID of its pause process here and outside."""

    def prepare() -> None:
        # Before the nested user namespace: the pod's programs have no power over its network.
        if request.netns:
            syscalls.setns(fds[0], Namespace.NET)
        else:
            syscalls.unshare(Namespace.NET)
            write_sysctls(request.sysctls)
        user = Namespace.USER if nested else Namespace(0)
        uid, gid = os.geteuid(), os.getegid()
        syscalls.unshare(Namespace.MOUNT | Namespace.PID | Namespace.UTS | user)
        if nested:
            write_maps(POD_UID, uid, gid)

    def become(writer: int) -> None:
        syscalls.mount("none", "/", flags=MountFlag.RECURSIVE | MountFlag.SLAVE)
        furnish(request)
        syscalls.set_hostname(request.hostname)
        _hold(writer)

    return spawn(prepare, become)


def write_maps(inside: int, uid: int, gid: int) -> None:
    """Map the one uid and gid of this process to *inside* in its new user namespace."""
    for name, value in (
        ("setgroups", "deny"),
        ("uid_map", f"{inside} {uid} 1"),
        ("gid_map", f"{inside} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(value)


def write_sysctls(values: Mapping[str, str]) -> None:
    """Write *values* (path under /proc/sys -> text) in this process's network namespace."""
    for path, value in values.items():
        # Not there: a kernel without IPv6, for one; then nothing needs the value either.
        with suppress(FileNotFoundError), open(f"/proc/sys/{path}", "w", encoding="ascii") as file:
            file.write(value)


def furnish(request: Pause) -> None:
    """Give this mount namespace what a pod is to see."""
    substitute_etc(request.etc)
    with suppress(OSError):
        _renew_run()
    for path in SCRATCH:
        with suppress(OSError):
            _scratch(path)
    syscalls.mount("tmpfs", request.hidden, "tmpfs", _PRIVATE, "mode=0755")
    with suppress(OSError):
        _renew_proc()


def substitute_etc(source: str) -> None:
    """Put every file of *source* in the place of its namesake in /etc.

    A namesake that is missing, or a symbolic link to nowhere, cannot be covered by a bind mount;
    then the whole of /etc becomes a read-only overlay.
    """
    names = os.listdir(source)
    if all(os.path.isfile(f"/etc/{name}") for name in names):
        for name in names:
            syscalls.mount(f"{source}/{name}", f"/etc/{name}", flags=MountFlag.BIND)
        return
    lower = source.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
    syscalls.mount("overlay", "/etc", "overlay", data=f"lowerdir={lower}:/etc")


def _renew_run() -> None:
    """Replace /run by a writable directory with the same entries."""
    staging = next(path for path in _STAGING if os.path.isdir(path))
    syscalls.mount("tmpfs", staging, "tmpfs", _PRIVATE, "mode=0755")
    for entry in os.scandir("/run"):
        with suppress(OSError):
            _bind_entry(entry, f"{staging}/{entry.name}")
    syscalls.mount(staging, "/run", flags=MountFlag.MOVE)


def _bind_entry(entry: os.DirEntry[str], target: str) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), target)
        return
    if entry.is_dir():
        os.mkdir(target)
    elif not entry.name.endswith(".pid"):
        # A PID file speaks of a process outside; a daemon of the pod wants to write its own.
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC))
    else:
        return
    syscalls.mount(entry.path, target, flags=MountFlag.BIND | MountFlag.RECURSIVE)


def _scratch(path: str) -> None:
    directories = [entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False)]
    syscalls.mount("tmpfs", path, "tmpfs", _PRIVATE, "mode=0755")
    for name in directories:
        os.mkdir(f"{path}/{name}")


def _renew_proc() -> None:
    syscalls.mount("proc", "/proc", "proc", _PRIVATE | MountFlag.NO_EXEC)
    for path in READ_ONLY:
        with suppress(OSError):
            _make_read_only(path)


def _make_read_only(path: str) -> None:
    # What is locked on the mount has to be said again, or the kernel takes it for an attempt to lift it.
    kept = os.statvfs(path).f_flag & (_PRIVATE | MountFlag.NO_EXEC)
    syscalls.mount(path, path, flags=MountFlag.BIND | MountFlag.RECURSIVE)
    syscalls.mount("none", path, flags=MountFlag.BIND | MountFlag.READ_ONLY | _REMOUNT | kept)


def _hold(writer: int) -> NoReturn:
    """Reap orphans until killed; closing every descriptor tells init that the pod is there."""
    syscalls.set_process_name("pause")
    # Blocked signals are queued even for a PID 1, which otherwise drops those without a handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    # Inherited from init, whose supervisor is not the pod's to signal.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.chdir("/")
    os.closerange(0, 1 << 20)
    # It only waits; and daemons with few powers of their own must be able to look at its namespaces.
    syscalls.drop_capabilities()
    while signal.sigwait({signal.SIGCHLD, signal.SIGTERM}) == signal.SIGCHLD:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os._exit(0)
