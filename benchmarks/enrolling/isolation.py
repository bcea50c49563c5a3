"""Running a measurement in namespaces of its own, which no crash leaves behind."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def isolated(body: Callable[[], Any], *, rootless: bool) -> Any:
    """Run *body* in a child with a fresh network (and, rootless, user) namespace; return what it returned.

    Every process that it starts is in its process group, which is killed at the end.

    Raises:
        RuntimeError: it failed; the text is its traceback.
    """
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    outer = os.fork()
    if outer == 0:
        os.close(reader)
        _outer(body, writer, rootless)
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as stream:
            said = stream.read()
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(outer, signal.SIGKILL)
        os.waitpid(outer, 0)
    answer = json.loads(said or b'{"error": "the process of the measurement died"}')
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["result"]


def die_with_parent() -> None:
    """For a child: end when the process that started it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _outer(body: Callable[[], Any], writer: int, rootless: bool) -> None:
    """The child: make the namespaces, run, say how it went."""
    os.setpgid(0, 0)
    die_with_parent()
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNET | (CLONE_NEWUSER if rootless else 0)
    if _libc.unshare(flags):
        _say(writer, {"error": f"unshare: {os.strerror(ctypes.get_errno())}"})
    if rootless:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    try:
        _say(writer, {"result": body()})
    except BaseException:
        _say(writer, {"error": traceback.format_exc()})


def _say(writer: int, answer: dict[str, Any]) -> None:
    with os.fdopen(writer, "wb") as stream:
        stream.write(json.dumps(answer).encode())
    os._exit(0)
