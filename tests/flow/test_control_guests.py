"""Guests: namespaces that somebody else made, as pods of the control plane."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.errors import AmbientError
from ambient.model.workload import Protocol
from tests.flow.fake_mesh import FakeMesh, fake_mesh

GUEST: dict[str, Any] = {
    "namespace": "default",
    "name": "nginx-71",
    "node": "node-2",
    "service_account": "front",
    "addresses": ["192.0.2.7", "2001:db8::7"],
    "phase": "Running",
    "ready": True,
    "pid": 71,
    "netns": "/guests/1",
}


async def welcome(mesh: FakeMesh, **changes: Any) -> str:
    answer = await mesh.fabric.client.call("welcome", **{**GUEST, **changes})
    return str(answer["uid"])


async def test_a_guest_is_enrolled_like_any_pod_and_started_by_nobody() -> None:
    """It has an identity and an address; the supervisor hears nothing of it."""
    async with fake_mesh() as mesh:
        uid = await welcome(mesh)

        result = await mesh.enroll("default/nginx-71")

        assert [(pod["name"], pod["node"], pod["enrolled"]) for pod in result["pods"]] == [
            ("nginx-71", "node-2", True)
        ]
        assert "capture nginx-71" in mesh.agent("node-2").log
        assert [pod.netns for pod in mesh.agent("node-2").pods] == ["/guests/1"]
        # Its name servers are not the cluster's, and know what that one does not.
        assert [pod.dns_capture for pod in mesh.agent("node-2").pods] == [False]
        assert mesh.ztunnel("node-1").protocols() == {"nginx-71": Protocol.HBONE}
        known = mesh.cluster.registry().workloads[uid]
        assert known.service_account == "front"
        assert known.addresses == ("192.0.2.7", "2001:db8::7")
        assert mesh.fabric.pods == {}


async def test_a_vanished_guest_leaves_every_list() -> None:
    """Whoever dialled it would wait for nobody."""
    async with fake_mesh() as mesh:
        await welcome(mesh)
        await mesh.enroll("default/nginx-71")

        await mesh.fabric.client.call("dismiss", namespace="default", name="nginx-71", vanished=True)

        await mesh.until(lambda: not mesh.cluster.pods())
        await mesh.until(lambda: not mesh.agent("node-2").pods)
        await mesh.until(lambda: not mesh.ztunnel("node-1").protocols())


async def test_a_vanished_guest_is_told_of_so_that_its_successor_is_like_it() -> None:
    """Node, account and what was asked of it: its successor is enrolled, or opted out, without a word."""
    async with fake_mesh() as mesh:
        await welcome(mesh)
        await mesh.enroll("default/nginx-71")

        last = await mesh.fabric.client.call("dismiss", namespace="default", name="nginx-71", vanished=True)
        await mesh.until(lambda: not mesh.cluster.pods())
        await welcome(mesh, **last, netns="/guests/2")

        assert last == {"node": "node-2", "service_account": "front", "dataplane_mode": "ambient"}
        await mesh.until(lambda: mesh.ztunnel("node-1").protocols() == {"nginx-71": Protocol.HBONE})


async def test_a_dismissed_guest_goes_when_it_has_left_the_mesh() -> None:
    """Its proxied connections end first: forgetting it would cut them."""
    async with fake_mesh() as mesh:
        await welcome(mesh)
        await mesh.enroll("default/nginx-71")
        await mesh.fabric.client.call("dismiss", namespace="default", name="nginx-71", vanished=False)
        assert [pod.name for pod in mesh.cluster.pods()] == ["nginx-71"]

        await mesh.enroll("default/nginx-71", mode="none")

        await mesh.until(lambda: not mesh.cluster.pods())
        assert "release nginx-71" in mesh.agent("node-2").log


async def test_a_dismissed_guest_that_is_asked_for_again_stays() -> None:
    """Scripts repeat themselves."""
    async with fake_mesh() as mesh:
        first = await welcome(mesh)
        await mesh.enroll("default/nginx-71")
        await mesh.fabric.client.call("dismiss", namespace="default", name="nginx-71", vanished=False)

        assert await welcome(mesh) == first
        await mesh.enroll("default/nginx-71", mode="none")

        assert [pod.name for pod in mesh.cluster.pods()] == ["nginx-71"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"name": "other"}, "192.0.2.7 is the address of pod default/nginx-71"),
        ({"netns": "/guests/2"}, "a pod default/nginx-71 already; give another --name"),
        ({"namespace": "nowhere", "name": "other"}, "namespace 'nowhere' does not exist"),
        ({"node": "node-9", "name": "other"}, "no node 'node-9': the nodes are node-1, node-2"),
    ],
    ids=["address-taken", "name-taken", "no-namespace", "no-node"],
)
async def test_refused(changes: dict[str, Any], reason: str) -> None:
    """One line that says what to do."""
    async with fake_mesh() as mesh:
        await welcome(mesh)

        with pytest.raises(AmbientError, match=reason):
            await welcome(mesh, **changes)


SURVEY: dict[str, Any] = {
    "rules": "table inet ambient {}",
    "standing": "none",
    "blocker": "port 15006 is taken by nginx (pid 71)",
    "note": "",
    "established": 3,
    "connections": ["192.0.2.7:80 - 192.0.2.9:40000"],
}


async def test_a_guest_is_foreseen_without_a_trace() -> None:
    """With what control knows beside what was seen in it: here, that its service account is not there."""
    async with fake_mesh() as mesh:
        version = mesh.cluster.registry().version
        line = await mesh.fabric.client.call("foresee", survey=SURVEY, existing="reset", **GUEST)

        reasons = [(each["blocks"], each["reason"]) for each in line["findings"]]
        assert reasons == [
            (True, "port 15006 is taken by nginx (pid 71)"),
            (True, "its service account 'front' does not exist in namespace 'default'"),
        ]
        assert (line["name"], line["node"], line["rules"]) == ("nginx-71", "node-2", "table inet ambient {}")
        assert line["established_connections_reset"] == 3
        assert not mesh.cluster.pods()
        assert mesh.cluster.registry().version == version
        with pytest.raises(AmbientError, match="no node 'node-9'"):
            await mesh.fabric.client.call("foresee", survey=SURVEY, **{**GUEST, "node": "node-9"})


async def test_a_guest_gets_no_sidecar() -> None:
    """That needs a restart of something that is not ours."""
    async with fake_mesh() as mesh:
        await welcome(mesh)

        with pytest.raises(AmbientError, match="somebody else runs it"):
            await mesh.enroll("default/nginx-71", mode="sidecar")
        result = await mesh.enroll("default", mode="sidecar")

        assert [(pod["enrolled"], pod["reason"][:13]) for pod in result["pods"]] == [(False, "somebody else")]
