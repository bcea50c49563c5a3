"""Starting a mesh: from a command line to a PID 1 that needs it no longer.

    caller --Popen--> bootstrap --unshare, fork--> init (PID 1) --fork, exec--> supervisor
       ^                                                                      |
       +------------- pipe: {"ready": true} or {"error": "..."} --------------+

This is the caller's side; ``bootstrap`` is the other.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ambient
from ambient.errors import AmbientError, ConfigError
from ambient.fabric import clean, machine, rundir
from ambient.fabric import cni as plugins

# Control, agents and ztunnels are ready in under 2 s on the machine this was written on; the rest
# is for slow and busy ones.
START_SECONDS = 30.0
# From the fork of init to its first act; picked, not measured.
RECORD_SECONDS = 1.0
LOOPBACK_NOTE = "fabric loopback: built-in workloads only, no service names, nothing can be enrolled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A mesh whose daemons are ready; pods come when objects are applied.

    Attributes:
        notes: Sentences for the person who started it, such as why the fabric is ``loopback``.
    """

    run_dir: str
    record: rundir.Record
    notes: tuple[str, ...] = ()


def start(
    run_dir: str,
    *,
    nodes: int = 2,
    fabric: str = "auto",
    cni: str = "builtin",
    timeout: float = START_SECONDS,
) -> Started:
    """Start a mesh that lives until it is taken down, and wait until its daemons are ready.

    Args:
        run_dir: Made if it is not there; what a crashed mesh left in it is cleaned first.
        nodes: How many nodes, 1..200.
        fabric: ``"auto"``, ``"netns"`` or ``"loopback"``.
        cni: ``"builtin"``, or the CNI plugin that attaches pods: ``"bridge"``, ``"ptp"``, ``"macvlan"``.

    Raises:
        ConfigError: the arguments, or the run directory, will not do.
        AmbientError: it did not come up; nothing is left of it but its logs.
    """
    if not 1 <= nodes <= 200:
        raise ConfigError(f"{nodes} nodes: give 1 to 200")
    plugins.require(cni)
    chosen, notes = choose_fabric(fabric)
    if cni != "builtin" and chosen != "netns":
        raise AmbientError(f"--cni {cni} needs network namespaces, and the fabric is {chosen}: ambient check")
    rundir.prepare(run_dir)
    with _locked(run_dir):
        found = clean.running(run_dir)
        if found is not None:
            raise AmbientError(
                f"a mesh already runs in {run_dir} (pid {found.init_pid}): ambient down, or --run-dir"
            )
        clean.clean(run_dir)
        rundir.prepare(run_dir)
        _boot(run_dir, nodes, chosen, cni, timeout)
    record = rundir.read(run_dir)
    if record is None:
        raise AmbientError(f"the mesh ended while it started: see {run_dir}/logs")
    return Started(run_dir=run_dir, record=record, notes=notes)


def choose_fabric(wanted: str) -> tuple[str, tuple[str, ...]]:
    """Which fabric this machine is to run, and what to tell about that.

    Raises:
        ConfigError: *wanted* is not a fabric.
        AmbientError: *wanted* is ``netns`` and the machine forbids it.
    """
    if wanted not in ("auto", "netns", "loopback"):
        raise ConfigError(f"no fabric {wanted!r}: auto, netns or loopback")
    if wanted == "loopback":
        return wanted, (LOOPBACK_NOTE,)
    reason = machine.namespaces_reason(rootless=is_rootless())
    if not reason:
        return "netns", ()
    if wanted == "netns":
        raise AmbientError(f"no network namespaces: {reason}")
    return "loopback", (f"no network namespaces: {reason}; see ambient check", LOOPBACK_NOTE)


def is_rootless() -> bool:
    """Whether a mesh started now would live in a user namespace."""
    return os.geteuid() != 0 or os.environ.get("AMBIENT_ROOTLESS") == "1"


@contextmanager
def _locked(run_dir: str) -> Iterator[None]:
    """Hold off a second ``up`` in the same run directory."""
    fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        raise AmbientError(f"another ambient up is at work in {run_dir}") from exc
    finally:
        os.close(fd)


def _boot(run_dir: str, nodes: int, fabric: str, cni: str, timeout: float) -> None:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    arguments = (run_dir, str(nodes), fabric, cni, str(int(is_rootless())), str(writer))
    log_path = f"{run_dir}/logs/boot.log"
    with open(log_path, "ab") as log:
        process = subprocess.Popen(
            (sys.executable, "-P", "-m", "ambient.fabric.bootstrap", *arguments),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(writer,),
            env=daemon_environment(os.environ),
            start_new_session=True,
        )
    os.close(writer)
    try:
        _await_ready(reader, run_dir, timeout)
    except KeyboardInterrupt:
        # Whoever changed their mind wants no logs. Not before the record is there to find init by.
        process.wait()
        _wait_for_record(run_dir)
        clean.clean(run_dir)
        raise
    except BaseException:
        clean.kill(run_dir)
        raise
    finally:
        os.close(reader)
        process.wait()


def _await_ready(reader: int, run_dir: str, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    said = b""
    while not said.endswith(b"\n"):
        if not select.select((reader,), (), (), max(0.0, deadline - time.monotonic()))[0]:
            raise AmbientError(f"the mesh was not ready after {timeout:g} s: see {run_dir}/logs")
        piece = os.read(reader, 65536)
        if not piece:
            raise AmbientError(f"the mesh ended while it started: {_last_line(run_dir)}")
        said += piece
    message = json.loads(said.splitlines()[0])
    if "error" in message:
        raise AmbientError(message["error"])


def _wait_for_record(run_dir: str) -> None:
    """Init writes it first of all; without one there was no init."""
    deadline = time.monotonic() + RECORD_SECONDS
    while rundir.read(run_dir) is None and time.monotonic() < deadline:
        time.sleep(0.01)


def _last_line(run_dir: str) -> str:
    for name in ("supervisor", "boot"):
        try:
            lines = Path(run_dir, "logs", f"{name}.log").read_text(errors="replace").splitlines()
        except OSError:
            continue
        if lines:
            return f"{lines[-1].strip()} (more in {run_dir}/logs/{name}.log)"
    return f"see {run_dir}/logs"


def daemon_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """*environment* with this very package importable, from a source tree too."""
    root = str(Path(ambient.__file__).resolve().parent.parent)
    paths = [root, *filter(None, environment.get("PYTHONPATH", "").split(":"))]
    return {**environment, "PYTHONPATH": ":".join(dict.fromkeys(paths))}
