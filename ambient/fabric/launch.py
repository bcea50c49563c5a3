"""What the supervisor asks of init, and what init answers: one JSON map per SEQPACKET packet.

Pure and standard library only: init is kept as small as it can be.

    supervisor                                    init (PID 1)
      {"id", "kind": "launch" | "pause", ...} + fds  -->
      {"id", "kind": "adopt", "pid", "host_pid"}     -->
      {"kind": "signal", "pid", "signal"}            -->
                                <--  {"id", "pid", "host_pid"} | {"id", "error"}
                                <--  {"exited": pid, "status": code}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

# A packet must fit the socket's send buffer (net.core.wmem_default, 212,992 on this kernel); half of it.
MAX_PACKET_BYTES = 100_000
# Descriptors beside one request: a network namespace, two sockets and room; picked, not measured.
MAX_FDS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """Start one program.

    Attributes:
        argv: The program is looked up in ``env["PATH"]``.
        log: File that standard output and error are appended to.
        pod: PID (inside the mesh) of the pause process whose namespaces to enter; 0 for none.
        netns: Whether the first descriptor sent along is a network namespace to enter.
        fd_names: For every further descriptor sent along, the environment name that tells the
            program its number, for example ``("AMBIENT_CONTROL_FD",)``.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: str
    cwd: str = "/"
    pod: int = 0
    netns: bool = False
    fd_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Make the namespaces of one pod and a process that holds them.

    Attributes:
        etc: Directory whose files stand in for those of the same names in /etc.
        hidden: Directory to cover with an empty one: the mesh's run directory.
        sysctls: Path under /proc/sys -> value, written in the pod's network namespace.
        netns: Whether the first descriptor sent along is the network namespace to live in
            (``hostNetwork``), instead of a new one.
    """

    hostname: str
    etc: str
    hidden: str
    sysctls: Mapping[str, str] = field(default_factory=dict)
    netns: bool = False


def encode(kind: str, number: int, request: Launch | Pause) -> bytes:
    """One request as a packet."""
    return json.dumps({"kind": kind, "id": number, **asdict(request)}).encode()


def encode_adopt(number: int, pid: int, host_pid: int) -> bytes:
    """The request to take in an orphan."""
    return json.dumps({"kind": "adopt", "id": number, "pid": pid, "host_pid": host_pid}).encode()


def decode_launch(message: Mapping[str, Any]) -> Launch:
    """Read a ``launch`` map back."""
    return Launch(
        argv=tuple(message["argv"]),
        env=message["env"],
        log=message["log"],
        cwd=message["cwd"],
        pod=message["pod"],
        netns=message["netns"],
        fd_names=tuple(message["fd_names"]),
    )


def decode_pause(message: Mapping[str, Any]) -> Pause:
    """Read a ``pause`` map back."""
    return Pause(
        hostname=message["hostname"],
        etc=message["etc"],
        hidden=message["hidden"],
        sysctls=message["sysctls"],
        netns=message["netns"],
    )
