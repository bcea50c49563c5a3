"""The main job, told from outside: one command, its own mesh, a proof on the wire, nothing left."""

from __future__ import annotations

import json

import pytest

from tests.story.conftest import Mesh, processes_of

pytestmark = [pytest.mark.netns, pytest.mark.slow]


def test_one_command_compares_on_a_mesh_of_its_own(mesh: Mesh) -> None:
    """Too short for numbers; long enough to see plaintext without a mesh and none with one."""
    asked = ("--modes", "none,ambient", "--rate", "50", "--duration", "2s", "--rounds", "1", "-o", "json")
    done = mesh.run("bench", "run", *asked)
    assert done.stdout, done.stderr
    document = json.loads(done.stdout)

    assert document["kind"] == "BenchRun", done.stderr
    by_mode = {one["mode"]: one for one in document["modes"]}
    assert document["gates"]["traffic_proven_encrypted"] is True, document["modes"]
    assert document["gates"]["no_errors"] is True
    assert by_mode["none"]["proxies"] == []
    assert [one["role"] for one in by_mode["ambient"]["proxies"]] == ["ztunnel", "ztunnel"]
    assert all(one["cpu_seconds"] > 0 for one in by_mode["ambient"]["proxies"])
    assert by_mode["ambient"]["totals"]["pod_restarts"] == 0
    assert by_mode["ambient"]["totals"]["handshakes"] > 0
    assert list(mesh.run_dir.parent.glob("run-bench-*")) == []
    assert not processes_of(mesh.run_dir)
