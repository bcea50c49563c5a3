"""``ambient-cni``: a chained CNI plugin that holds a pod's start until the pod is captured.

It does nothing itself: it hands the pod's namespace to the node's agent as a descriptor and waits. So a
pod that is to be in the mesh never runs a moment outside it; if it cannot be captured, its start fails,
and the runtime tries again. Pods that are not to be in the mesh pass at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ambient.engine.blocking import BlockingAdminClient
from ambient.engine.netns import open_netns
from ambient.errors import AmbientError, Unavailable
from ambient.redirect.cni_plan import (
    MAX_INPUT_BYTES,
    VERSIONS,
    Call,
    CniError,
    Code,
    Verb,
    failure,
    read_call,
    success,
)
from ambient.wire.admin import CallFailed, ExitCode

# The agent answers what needs no capture at once; picked, not measured.
ANSWER_SECONDS = 10.0
# The agent has its own deadline for an ADD, and its reason is worth more than ours.
GRACE_SECONDS = 5.0


def carry_out(call: Call) -> None:
    """Do what the runtime asked.

    Raises:
        CniError: it cannot be done, and why.
    """
    match call.verb:
        case Verb.ADD:
            _ask(call, "cni_add", call.timeout + GRACE_SECONDS)
        case Verb.CHECK:
            _ask(call, "cni_check", ANSWER_SECONDS)
        case Verb.DEL:
            # Never an error: what is gone needs no work, and a runtime would try for ever.
            with suppress(CniError):
                _ask(call, "cni_del", ANSWER_SECONDS)
        case Verb.STATUS:
            _ask(call, "cni_status", ANSWER_SECONDS)
        case Verb.GC | Verb.VERSION:
            # Nothing is kept for an attachment, so nothing can be left over.
            return


def _ask(call: Call, method: str, timeout: float) -> None:
    params = {
        "namespace": call.namespace,
        "pod": call.pod,
        "container": call.container,
        "timeout": call.timeout,
    }
    fds = _open(call)
    try:
        with BlockingAdminClient.connect(Path(call.socket), timeout) as agent:
            agent.call_with(fds, method, params)
    except Unavailable as exc:
        code = Code.NOT_AVAILABLE if call.verb is Verb.STATUS else Code.TRY_AGAIN_LATER
        raise CniError(code, f"the node's agent does not answer at {call.socket}", str(exc)) from exc
    except CallFailed as exc:
        raise CniError(_code(call, exc), f"{_who(call)}{exc}") from exc
    except AmbientError as exc:
        raise CniError(Code.IO_FAILURE, str(exc)) from exc
    finally:
        for fd in fds:
            os.close(fd)


def _code(call: Call, exc: CallFailed) -> Code:
    if call.verb is Verb.STATUS:
        return Code.NOT_AVAILABLE
    if exc.code in (ExitCode.UNAVAILABLE, ExitCode.TIMED_OUT):
        return Code.TRY_AGAIN_LATER
    return Code.NOT_CAPTURED


def _who(call: Call) -> str:
    return f"pod {call.namespace}/{call.pod}: " if call.pod else ""


def _open(call: Call) -> list[int]:
    if not call.netns or call.verb is Verb.STATUS:
        return []
    try:
        return [open_netns(call.netns)]
    except OSError as exc:
        raise CniError(Code.IO_FAILURE, f"cannot open CNI_NETNS={call.netns!r}: {exc.strerror}") from exc


def run(environment: Mapping[str, str], data: bytes) -> tuple[int, bytes]:
    """One call: exit code, and what goes to standard output."""
    version = VERSIONS[-1]
    try:
        call = read_call(environment, data)
        version = call.version
        carry_out(call)
        return 0, success(call)
    except CniError as exc:
        return 1, failure(exc, version)


def main() -> Any:
    """The console script."""
    code, output = run(os.environ, sys.stdin.buffer.read(MAX_INPUT_BYTES + 1))
    sys.stdout.buffer.write(output)
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())
