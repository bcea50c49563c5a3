"""What the zygote does before it forks leaves nothing that two of its children would share and must not."""

from __future__ import annotations

import subprocess
import sys

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
