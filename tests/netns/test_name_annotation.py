"""A whole mesh: whose lookups are captured, by the pod's annotation, told by the answer's time to live."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ambient.engine.blocking import BlockingAdminClient
from ambient.fabric import boot, clean, enter
from ambient.model.addressing import NETNS
from ambient.redirect import dns_server
from tests.netns.meshes import DEADLINE, Mesh, pod
from ztunnel import name_server

pytestmark = [pytest.mark.netns, pytest.mark.slow, pytest.mark.timeout(120)]

ASK = """
import socket, sys
from ambient.wire.dns import TYPE_A, encode_query
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(20)
    sock.connect((sys.argv[2], 53))
    sock.send(encode_query(7, sys.argv[1], TYPE_A))
    reply = sock.recv(512)
    print(int.from_bytes(reply[-10:-6], "big"))
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    """Two pods that ask, one of which does not want its lookups captured."""
    path = tmp_path / "run"
    try:
        made = Mesh(path, nodes=1)
        asking, left_alone = pod("asking", "sleep", "infinity"), pod("left-alone", "sleep", "infinity")
        left_alone["metadata"]["annotations"] = {"ambient.istio.io/dns-capture": "false"}
        made.apply(asking, left_alone)
        yield made
    finally:
        clean.clean(str(path))


def time_to_live(mesh: Mesh, name: str) -> int:
    """Of the answer that the pod *name* gets for its own name."""
    own = f"{mesh.ip(name).replace('.', '-')}.test.pod.cluster.local"
    program = (sys.executable, "-c", ASK, own, NETNS.dns[0])
    argv = enter.command(mesh.init_pid, mesh.pid(name), program, network_only=True)
    environment = boot.daemon_environment(os.environ)
    return int(subprocess.run(argv, check=True, capture_output=True, text=True, env=environment).stdout)


def enroll(mesh: Mesh, mode: str) -> None:
    target = {"kind": "namespace", "namespace": "test", "name": "test"}
    how = {"mode": mode, "engine": "ambient", "existing": "keep", "dry_run": False, "wait": True}
    with BlockingAdminClient.connect(mesh.run_dir / "control.sock", DEADLINE) as control:
        assert control.call("enroll", targets=[target], timeout=DEADLINE, **how)["failed"] == 0


def test_lookups_are_ztunnels_unless_the_pod_says_no(mesh: Mesh) -> None:
    """Before, while and after: the node's server, ztunnel's, the node's again."""
    node, ztunnel = dns_server.TTL_SECONDS, name_server.TTL_SECONDS
    assert node != ztunnel

    def both() -> tuple[int, int]:
        return time_to_live(mesh, "asking"), time_to_live(mesh, "left-alone")

    assert both() == (node, node)
    enroll(mesh, "ambient")
    assert both() == (ztunnel, node)
    enroll(mesh, "none")
    assert both() == (node, node)
