"""Who gets which certificate: over the wire, from a real CA."""

from __future__ import annotations

import logging

import pytest

from ambient.model.identity import SpiffeId
from ambient.pki.svid import X509Svid, spiffe_id_of
from tests.flow.fake_mesh import fake_mesh
from tests.flow.test_control_bringup import SHOP

API = SpiffeId("cluster.local", "shop", "api")
CLIENT = SpiffeId("cluster.local", "shop", "client")
WAYPOINT = SpiffeId("cluster.local", "shop", "waypoint")


async def test_a_node_gets_the_identities_of_its_own_pods_only(caplog: pytest.LogCaptureFixture) -> None:
    """A node that is taken over must not become every workload of the mesh."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        home = next(pod.node for pod in mesh.cluster.pods() if pod.name == "client")
        away = "node-2" if home == "node-1" else "node-1"

        mine = await mesh.ztunnel(home).ask(CLIENT)
        with caplog.at_level(logging.WARNING):
            refused = await mesh.ztunnel(away).ask(CLIENT)

        assert isinstance(mine, X509Svid)
        assert spiffe_id_of(mine.chain[0]) == CLIENT
        assert isinstance(refused, str)
        assert "runs no workload that is spiffe://cluster.local/ns/shop/sa/client" in refused
        assert "refused a certificate" in caplog.text
        status = await mesh.desk.call("status")
        (shown,) = status["certificates"]
        assert (shown["identity"], shown["node"]) == (str(CLIENT), home)


async def test_an_agent_gets_none() -> None:
    """It redirects; it speaks for nobody."""
    async with fake_mesh(nodes=1) as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()

        assert "runs no workload" in str(await mesh.agent("node-1").ask(CLIENT))


async def test_proxies_of_one_pod_get_their_own_identity_only() -> None:
    """A waypoint its Gateway's, a sidecar its pod's, and the node's ztunnel neither."""
    async with fake_mesh(nodes=1) as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.desk.call("waypoint_apply", namespace="shop")
        await mesh.enroll("shop/client", mode="sidecar")
        pods = {pod.name: pod for pod in mesh.cluster.pods()}
        (waypoint,) = [each for name, each in pods.items() if name.startswith("waypoint-")]
        sidecar = mesh.fabric.daemons[f"sidecar/{pods['client'].uid}"]
        gateway = mesh.fabric.daemons[f"waypoint/{waypoint.uid}"]

        assert isinstance(await sidecar.ask(CLIENT), X509Svid)
        assert isinstance(await gateway.ask(WAYPOINT), X509Svid)
        assert isinstance(await sidecar.ask(API), str)
        assert isinstance(await gateway.ask(API), str)
        assert isinstance(await mesh.ztunnel("node-1").ask(API), X509Svid)
        assert isinstance(await mesh.ztunnel("node-1").ask(CLIENT, 2), str)
        assert isinstance(await mesh.ztunnel("node-1").ask(WAYPOINT, 3), str)


async def test_an_identity_ends_with_its_last_pod() -> None:
    """What no longer runs here is not certified here."""
    async with fake_mesh(nodes=1) as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        body = {"kind": "Pod", "metadata": {"name": "client", "namespace": "shop"}}
        await mesh.desk.call("delete", objects=[body])
        await mesh.until(lambda: len(mesh.cluster.pods()) == 2)

        assert isinstance(await mesh.ztunnel("node-1").ask(CLIENT), str)
