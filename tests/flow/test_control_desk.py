"""What the command line asks: objects in and out, whole or not at all, and questions about policy."""

from __future__ import annotations

import pytest

from ambient.engine.rpc import RpcError
from ambient.errors import ConfigError
from ambient.model.manifest import parse_manifests
from tests.flow.fake_mesh import FakeMesh, fake_mesh
from tests.flow.test_control_bringup import SHOP

DENY = """
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-client, namespace: shop}
spec:
  action: DENY
  selector: {matchLabels: {app: api}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
"""


async def check(mesh: FakeMesh, destination: str, kind: str = "pod") -> dict[str, object]:
    place = {"kind": kind, "namespace": "shop"}
    source = {**place, "kind": "pod", "name": "client"}
    ends = {"source": source, "destination": {**place, "name": destination}}
    return dict(await mesh.desk.call("authz_check", **ends, port=0))


async def test_pods_are_shown_as_kubernetes_shows_them() -> None:
    """And what the mesh adds stands under status.ambient."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop/client")

        (pod,) = await mesh.desk.call("get", kind="Pod", namespace="shop", name="client")

        assert pod["spec"]["serviceAccountName"] == "client"
        assert pod["status"]["podIP"].startswith("10.244.")
        assert pod["status"]["hostIP"].startswith("100.64.")
        assert pod["status"]["phase"] == "Running"
        ambient = pod["status"]["ambient"]
        assert (ambient["mode"], ambient["enrolled"], ambient["state"]) == ("ambient", True, "enrolled")
        assert (ambient["protocol"], ambient["pid"]) == ("HBONE", 4711)
        assert ambient["uid"] == "Kubernetes//Pod/shop/client#1"


async def test_services_deployments_and_namespaces_say_what_became_of_them() -> None:
    """Addresses and counts."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()

        (service,) = await mesh.desk.call("get", kind="Service", namespace="shop")
        (deployment,) = await mesh.desk.call("get", kind="Deployment")
        spaces = await mesh.desk.call("get", kind="Namespace")
        nodes = await mesh.desk.call("get", kind="Node")

        assert service["spec"]["clusterIPs"] == ["10.96.0.11"]
        assert deployment["status"] == {"replicas": 2, "readyReplicas": 2}
        assert [each["metadata"]["name"] for each in spaces][0::3] == ["default", "shop"]
        assert [each["metadata"]["name"] for each in nodes] == ["node-1", "node-2"]
        assert await mesh.desk.call("get", kind="Pod", namespace="default") == []


async def test_one_bad_object_and_nothing_is_applied() -> None:
    """With the file and line of it."""
    bad = DENY.replace("principals: [cluster.local/ns/shop/sa/client]", "ipBlocks: [nonsense]")
    async with fake_mesh() as mesh:
        objects = [
            {**each.body, "origin": each.origin} for each in parse_manifests([("a.yaml", SHOP)]).objects
        ]
        policy = {**parse_manifests([("a.yaml", DENY)]).objects[0].body, "origin": "a.yaml:9"}
        policy["spec"] = {**policy["spec"], "rules": [{"from": [{"source": {"ipBlocks": ["nonsense"]}}]}]}
        assert "nonsense" in bad

        with pytest.raises(ConfigError, match=r"a\.yaml:9.*nonsense"):
            await mesh.desk.call("apply", objects=[*objects, policy])

        assert mesh.cluster.pods() == ()
        assert mesh.cluster.store.get("Namespace", "", "shop") is None


async def test_more_pods_than_fit_are_refused_before_the_first_starts() -> None:
    """253 to a node; a mesh that is nearly full still replaces its pods."""
    async with fake_mesh(nodes=1) as mesh:
        with pytest.raises(ConfigError, match="255 pods do not fit: the mesh has room for 253"):
            await mesh.apply(SHOP.replace("replicas: 2", "replicas: 254"))
        assert mesh.cluster.pods() == ()

        await mesh.apply(SHOP.replace("replicas: 2", "replicas: 200"))
        await mesh.apply(SHOP.replace("replicas: 2", "replicas: 200").replace("version: v1", "version: v2"))
        await mesh.until(lambda: {p.labels.get("version", "v2") for p in mesh.cluster.pods()} == {"v2"})

        assert len(mesh.cluster.pods()) == 201


async def test_a_policy_reaches_the_ztunnels_and_the_explanation_agrees() -> None:
    """What authz check says is what happens."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop")
        before = await check(mesh, "api", "service")

        await mesh.apply(DENY)
        await mesh.ready()
        after = await check(mesh, "api", "service")
        by_deployment = await check(mesh, "api-v1")

        assert (before["allowed"], before["verdict"], before["port"]) == (True, "ALLOW", 80)
        assert (after["allowed"], after["policy"]) == (False, "shop/no-client")
        assert (by_deployment["allowed"], by_deployment["port"]) == (False, 8080)
        known = mesh.ztunnel("node-1").mesh
        guarded = [each for each in known.workloads() if each.authorization_policies]
        assert {each.authorization_policies for each in guarded} == {("shop/no-client",)}
        assert len(guarded) == 2


async def test_questions_about_nobody_are_refused() -> None:
    """With the next step."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()

        with pytest.raises(RpcError, match="no pod 'nobody'"):
            await check(mesh, "nobody")
        with pytest.raises(RpcError, match="no service 'nobody'"):
            await check(mesh, "nobody", "service")
        with pytest.raises(RpcError, match="names no port"):
            await check(mesh, "client")
        with pytest.raises(ConfigError, match="must be a kind"):
            await mesh.desk.call("authz_check", source="client", destination="api")


async def test_a_new_template_replaces_pods_when_the_new_ones_are_ready() -> None:
    """A rolling update: the service always has somebody."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        old = {pod.name for pod in mesh.cluster.pods() if pod.name.startswith("api")}
        mesh.fabric.log.clear()

        await mesh.apply(SHOP.replace("version: v1", "version: v2"))
        await mesh.until(lambda: not old & {pod.name for pod in mesh.cluster.pods()})
        await mesh.fabric_until(lambda: len(mesh.fabric.log) == 4)

        kinds = [line.split()[0] for line in mesh.fabric.log]
        assert kinds == ["add", "add", "remove", "remove"]
        assert len(mesh.cluster.pods()) == 3


async def test_scaling_keeps_the_pods_that_stay() -> None:
    """And applying the same file changes nothing."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        before = {pod.uid for pod in mesh.cluster.pods()}

        same = await mesh.apply(SHOP)
        more = await mesh.apply(SHOP.replace("replicas: 2", "replicas: 4"))
        await mesh.ready()

        assert {each["result"] for each in same} == {"unchanged"}
        assert [each["result"] for each in more].count("configured") == 1
        assert before < {pod.uid for pod in mesh.cluster.pods()}
        assert len(mesh.cluster.pods()) == 5


async def test_deleting_a_pod_of_a_deployment_starts_it_anew() -> None:
    """As in Kubernetes; and a namespace takes everything along."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        pod = next(pod for pod in mesh.cluster.pods() if pod.name.startswith("api"))
        body = {"kind": "Pod", "metadata": {"name": pod.name, "namespace": "shop"}}

        await mesh.desk.call("delete", objects=[body])
        await mesh.until(lambda: mesh.cluster.pod(*pod.key) not in (None, pod))
        await mesh.ready()
        again = mesh.cluster.pod(*pod.key)
        await mesh.desk.call("delete", objects=[{"kind": "Namespace", "metadata": {"name": "shop"}}])
        await mesh.until(lambda: not mesh.cluster.pods())
        await mesh.fabric_until(lambda: not mesh.fabric.pods)

        assert again is not None
        assert again.uid == f"{pod.uid[:-2]}#2"
        with pytest.raises(RpcError, match="does not exist in namespace 'shop'; see: ambient") as caught:
            await mesh.desk.call("delete", objects=[body])
        assert caught.value.code == 1


async def test_status_and_dump_tell_the_whole_story() -> None:
    """For people, and for whoever debugs."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop")

        status = await mesh.desk.call("status")
        dump = await mesh.desk.call("dump")

        told = {"agent": True, "ztunnel": True, "attestation": None}
        assert status["links"][0] == {"name": "node-1", **told}
        assert all(each["synchronised"] for each in status["daemons"])
        (shop,) = [each for each in status["namespaces"] if each["name"] == "shop"]
        assert (shop["mode"], shop["pods"], shop["enrolled"]) == ("ambient", 3, 3)
        assert len(dump["workloads"]) == status["counts"]["workloads"] == 3
        (api, _, _) = dump["workloads"]
        assert api["services"] == {"shop/api.shop.svc.cluster.local": {"80": 8080}}


async def test_a_daemon_that_starts_anew_gets_everything_again() -> None:
    """A ztunnel that was killed must know what the others know."""
    async with fake_mesh(nodes=1) as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop")
        await mesh.ztunnel("node-1").stream.aclose()
        await mesh.until(lambda: len(mesh.cluster.distribution.links()) == 1)

        again = await mesh.fabric.attach("ztunnel", "node-1")
        await mesh.until(lambda: len(mesh.cluster.distribution.links()) == 2)
        await mesh.until(lambda: mesh.cluster.distribution.links()[1].has_applied(1))

        assert again.mesh.workloads() == mesh.agent("node-1").mesh.workloads()
        assert again.snapshots == 1


async def test_a_daemon_that_breaks_the_wire_ends_alone() -> None:
    """Its connection is closed; the mesh goes on."""
    async with fake_mesh(nodes=1) as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()

        await mesh.ztunnel("node-1").send(b"\xff\xff\xff\xff")
        await mesh.until(lambda: len(mesh.cluster.distribution.links()) == 1)

        assert (await mesh.enroll("shop"))["failed"] == 0
