"""Waypoints come and go without losing a request: who is told what, and when."""

from __future__ import annotations

import pytest
import trio

from ambient.engine.rpc import RpcError
from ambient.errors import ConfigError
from ambient.model.workload import Protocol
from tests.flow.fake_mesh import FakeDaemon, FakeMesh, fake_mesh
from tests.flow.loopback import until
from tests.flow.test_control_bringup import SHOP

API = "shop/api.shop.svc.cluster.local"
WAYPOINT = "shop/waypoint.shop.svc.cluster.local"


def waypoint_of(daemon: FakeDaemon) -> str:
    service = daemon.mesh.service(API)
    assert service is not None
    return service.waypoint


async def apply(mesh: FakeMesh, **options: object) -> dict[str, object]:
    return dict(await mesh.desk.call("waypoint_apply", namespace="shop", **options))


async def test_a_waypoint_is_used_only_when_it_is_ready() -> None:
    """Otherwise requests would be sent to nobody."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        mesh.fabric.holding = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: apply(mesh, enroll_namespace=True))
            await mesh.until(lambda: len(mesh.cluster.pods()) == 4)
            with trio.move_on_after(0.05):
                await trio.sleep_forever()
            assert waypoint_of(mesh.ztunnel("node-1")) == ""
            (pod,) = [each for each in mesh.cluster.pods() if each.role.value == "waypoint"]
            await mesh.fabric.status(pod.uid, ready=True)

        for node in ("node-1", "node-2"):
            assert waypoint_of(mesh.ztunnel(node)) == WAYPOINT
            (endpoint,) = mesh.ztunnel(node).mesh.endpoints(WAYPOINT)
            assert endpoint.protocol is Protocol.HBONE
            assert endpoint.waypoint_for == WAYPOINT
            assert str(endpoint.identity) == "spiffe://cluster.local/ns/shop/sa/waypoint"


async def test_a_waypoint_is_removed_after_everybody_stopped_using_it() -> None:
    """The label goes first, then all acks, then a moment, and only then the pod."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await apply(mesh, enroll_namespace=True)
        slow = mesh.ztunnel("node-2")
        slow.stuck = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: mesh.desk.call("waypoint_delete", namespace="shop", name="waypoint"))
            await until(lambda: not waypoint_of(slow))
            assert len(mesh.fabric.pods) == 4
            await slow.release()

        assert len(mesh.fabric.pods) == 3
        assert mesh.fabric.log[-1].startswith("remove waypoint-")
        assert waypoint_of(slow) == ""
        assert slow.mesh.service(WAYPOINT) is None
        assert not mesh.cluster.store.labels_of_namespace("shop")
        assert (await mesh.desk.call("waypoint_list"))["items"] == []


async def test_a_waypoint_is_applied_twice_and_listed_once() -> None:
    """Idempotent, and shown with istioctl's words."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()

        first = await apply(mesh)
        second = await apply(mesh)

        (item,) = (await mesh.desk.call("waypoint_list"))["items"]
        assert (first["result"], second["result"]) == ("created", "unchanged")
        assert (item["name"], item["traffic"], item["programmed"]) == ("waypoint", "service", True)
        assert mesh.cluster.store.labels_of_namespace("shop") == {}


async def test_a_waypoint_for_workloads_serves_pod_addresses() -> None:
    """And a service-only one does not."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()

        await apply(mesh, traffic="workload", enroll_namespace=True)

        known = mesh.ztunnel("node-1").mesh
        ways = {each.name: each.waypoint for each in known.workloads() if not each.waypoint_for}
        assert set(ways.values()) == {WAYPOINT}
        assert waypoint_of(mesh.ztunnel("node-1")) == ""


async def test_a_gateway_in_a_manifest_does_the_same() -> None:
    """istioctl waypoint generate | kubectl apply -f -"""
    gateway = """
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
"""
    async with fake_mesh() as mesh:
        labelled = SHOP.replace("{name: shop}", "{name: shop, labels: {istio.io/use-waypoint: waypoint}}")
        await mesh.apply(labelled + gateway)
        await mesh.ready()

        assert waypoint_of(mesh.ztunnel("node-1")) == WAYPOINT


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"namespace": "nowhere"}, RpcError, "does not exist"),
        ({"namespace": "shop", "name": "none"}, ConfigError, "not a name"),
        ({"namespace": "shop", "name": "Way Point"}, ConfigError, "not a name"),
        ({"namespace": "shop", "name": "api"}, RpcError, "exists already"),
        ({"namespace": "shop", "traffic": "some"}, ConfigError, "one of"),
        ({"namespace": "used", "enroll_namespace": True}, RpcError, "uses waypoint 'other'"),
    ],
    ids=["namespace", "none", "name", "taken", "traffic", "other"],
)
async def test_waypoints_that_are_refused(
    options: dict[str, object], error: type[Exception], reason: str
) -> None:
    """Nothing is applied then."""
    labels = "labels: {istio.io/use-waypoint: other}"
    used = f"\n---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: used, {labels}}}"
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP + used)
        await mesh.ready()

        with pytest.raises(error, match=reason):
            await mesh.desk.call("waypoint_apply", **options)

        assert not mesh.cluster.store.of_kind("Gateway")


async def test_deleting_a_waypoint_that_is_not_there_is_refused() -> None:
    """A typing mistake must not look like success."""
    async with fake_mesh() as mesh:
        with pytest.raises(RpcError, match="no waypoint 'waypoint'"):
            await mesh.desk.call("waypoint_delete", namespace="default")
