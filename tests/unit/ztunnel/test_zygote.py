"""What the zygote does before it forks leaves nothing that two of its children would share and must not."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os
from ambient.model.identity import SpiffeId
from ambient.pki.request import new_request
from ztunnel.zygote import rehearse

os.environ["LOG_FORMAT"] = "nonsense"
rehearse()
print(len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")) - 1, flush=True)
for _ in range(3):
    if os.fork() == 0:
        key, _ = new_request(SpiffeId("cluster.local", "shop", "web"))
        print(key.public.hex(), flush=True)
        os._exit(0)
    os.wait()
"""


def test_forks_of_a_rehearsed_process_make_keys_of_their_own() -> None:
    """One thread, no descriptor left open, wrong settings left to whoever runs by them; and no key twice."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )

    assert (done.returncode, done.stderr) == (0, "")
    counted, *keys = done.stdout.splitlines()
    assert counted == "1 3"
    assert len(set(keys)) == 3


FAILING = """
import os, sys
from ztunnel import zygote

forks, left = os.fork, int(sys.argv[1])

def fork():
    global left
    left -= 1
    if not left:
        raise BlockingIOError(11, "no more processes")
    return forks()

os.fork = fork
before = os.listdir("/proc/self/fd")
try:
    zygote._fork([0, 0, 0])
except OSError as exc:
    print(exc, os.listdir("/proc/self/fd") == before, flush=True)
"""


@pytest.mark.parametrize(
    ("call", "said"),
    [(1, "[Errno 11] no more processes"), (2, "it ended before it could say its number")],
    ids=["between", "orphan"],
)
def test_a_fork_that_fails_leaves_one_zygote_and_no_descriptor(call: int, said: str) -> None:
    """Whichever of the two it is: who is between them ends, and does not answer in the zygote's place."""
    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(call)],
        capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip

    assert (done.returncode, done.stderr, done.stdout) == (0, "", f"{said} True\n")
