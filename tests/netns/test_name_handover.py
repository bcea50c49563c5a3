"""Lookups while ztunnel is killed and replaced: none is refused, and each is answered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import Any

import pytest

from ambient.fabric import boot, enter
from ambient.model.addressing import NETNS
from tests.netns.test_ztunnel_restart import NODES, Shop, shop

__all__ = ["shop"]

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(240)]

# Asks as a resolver does: from a new socket each time, once more after a second without an answer (glibc
# waits five), and never again after a refusal, because that is what must not happen.
LOOKUPS = """
import json, socket, sys, time
from ambient.wire.dns import TYPE_A, encode_query
name, server, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
print("ready", flush=True)
refused, again, lost, count = 0, 0, 0, 0
end = time.monotonic() + seconds
while time.monotonic() < end:
    count += 1
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((server, 53))
        sock.settimeout(1)
        for attempt in range(3):
            try:
                sock.send(encode_query(count % 65536, name, TYPE_A))
                reply = sock.recv(512)
                lost += not reply[6:8] == bytes([0, 1])
                break
            except ConnectionRefusedError:
                refused += 1
                break
            except TimeoutError:
                again += 1
        else:
            lost += 1
    time.sleep(0.002)
print(json.dumps({"count": count, "refused": refused, "again": again, "lost": lost}))
"""


def looking_up(shop: Shop, seconds: float) -> subprocess.Popen[str]:
    """Lookups of the server's name from the client's pod, begun when this returns."""
    name = f"{shop.server.replace('.', '-')}.test.pod.cluster.local"
    program = (sys.executable, "-c", LOOKUPS, name, NETNS.dns[0], str(seconds))
    argv = enter.command(shop.mesh.init_pid, shop.client, program, network_only=True)
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env=boot.daemon_environment(os.environ)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def found(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What became of them."""
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    document: dict[str, Any] = json.loads(said)
    return document


def test_lookups_wait_for_the_next_process(shop: Shop) -> None:
    """SIGKILL loses at most what was being read; what waits is answered by the one that comes."""
    asking = looking_up(shop, 6)
    for _ in range(3):
        time.sleep(1.5)  # Not luck: kills are spread over the run, that is all.
        shop.kill("ztunnel/node-1")

    result = found(asking)

    assert (result["refused"], result["lost"]) == (0, 0), result
    assert result["again"] <= 3, result
    assert result["count"] > 100


def test_upgrades_cost_no_lookup(shop: Shop) -> None:
    """Old and new process have the same sockets; every question gets its answer."""
    asking = looking_up(shop, 6)
    for _ in range(4):
        shop.upgrade(NODES[0])

    result = found(asking)

    assert (result["refused"], result["lost"]) == (0, 0), result
    assert result["count"] > 100
