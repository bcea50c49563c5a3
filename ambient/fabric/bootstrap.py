"""The process between a caller and the init of a new mesh: makes the namespaces and leaves.

Standard library only: init is its fork. It is fresh and has one thread, because a process with more
may not make a user namespace; it asks for all namespaces in one call, so that the user namespace
owns the others.
"""

from __future__ import annotations

import json
import os
import sys

from ambient.fabric import init, pause, procfs, rundir, syscalls
from ambient.fabric.syscalls import MountFlag, Namespace


def main(arguments: list[str]) -> None:
    """The boot process: make the namespaces, become the parent of init, and leave."""
    run_dir, nodes, fabric, cni, rootless, ready = arguments
    ready_fd = int(ready)
    os.set_inheritable(ready_fd, False)
    nested = fabric == "netns" and rootless == "1"
    owner = os.geteuid()
    machine = os.stat("/proc/self/ns/net")
    try:
        if fabric == "netns":
            make_namespaces(rootless=nested)
        if os.fork() != 0:
            os._exit(0)
        if fabric == "netns":
            syscalls.mount("none", "/", flags=MountFlag.RECURSIVE | MountFlag.SLAVE)
        else:
            syscalls.adopt_orphans()
        _record(run_dir, fabric, cni, nested, int(nodes), owner)
    except OSError as exc:
        os.write(ready_fd, json.dumps({"error": f"cannot make namespaces: {exc}"}).encode() + b"\n")
        os._exit(1)
    environment = {
        **os.environ,
        "AMBIENT_RUN_DIR": run_dir,
        "AMBIENT_NODES": nodes,
        "AMBIENT_FABRIC": fabric,
        "AMBIENT_CNI": cni,
        "AMBIENT_ROOTLESS": rootless,
        # No guest of the mesh: the namespace in which it was started.
        "AMBIENT_MACHINE_NETNS": f"{machine.st_dev}:{machine.st_ino}",
    }
    init.main(run_dir, (ready_fd,), environment, nested=nested, contained=fabric == "netns")


def make_namespaces(*, rootless: bool) -> None:
    """Put this process's next child into a mesh of its own; as its root, if *rootless*."""
    wanted = Namespace.NET | Namespace.MOUNT | Namespace.PID | Namespace.UTS
    uid, gid = os.geteuid(), os.getegid()
    syscalls.unshare(wanted | Namespace.USER if rootless else wanted)
    if rootless:
        pause.write_maps(0, uid, gid)


def _record(run_dir: str, fabric: str, cni: str, rootless: bool, nodes: int, uid: int) -> None:
    pid = procfs.host_pid()
    record = rundir.Record(
        init_pid=pid,
        init_started=procfs.start_ticks(pid),
        fabric=fabric,
        cni=cni,
        rootless=rootless,
        nodes=nodes,
        uid=uid,
    )
    rundir.write(run_dir, record)


if __name__ == "__main__":
    main(sys.argv[1:])
