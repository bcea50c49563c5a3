"""Enrolling and un-enrolling: the order of things, the way back, and what is refused."""

from __future__ import annotations

import pytest
import trio

from ambient.engine.rpc import RpcError
from ambient.errors import ConfigError
from ambient.model.workload import Protocol
from ambient.wire.xds import PodReport
from tests.flow.fake_mesh import FakeMesh, fake_mesh
from tests.flow.test_control_bringup import SHOP

HOST = """
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: shop, labels: {app: host}}
spec:
  hostNetwork: true
  containers: [{name: host, command: [sleep, infinity]}]
"""


def names(mesh: FakeMesh) -> list[str]:
    return [pod.name for pod in mesh.cluster.pods()]


async def test_a_namespace_is_enrolled_live_and_everybody_hears_of_it() -> None:
    """No pod restarts, and the call ends when every ztunnel speaks HBONE to them."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        uids = [pod.uid for pod in mesh.cluster.pods()]

        result = await mesh.enroll("shop")

        assert set(mesh.ztunnel("node-1").protocols().values()) == {Protocol.HBONE}
        assert set(mesh.ztunnel("node-2").protocols().values()) == {Protocol.HBONE}
        assert (result["mode"], result["restarts"], result["failed"]) == ("ambient", 0, 0)
        assert [pod["name"] for pod in result["pods"]] == names(mesh)
        assert {pod["established_connections_kept"] for pod in result["pods"]} == {3}
        assert all(pod["enrolled"] and pod["duration_ms"] > 0 for pod in result["pods"])
        assert [pod.uid for pod in mesh.cluster.pods()] == uids
        shown = await mesh.desk.call("get", kind="Namespace", name="shop")
        assert shown[0]["metadata"]["labels"] == {"istio.io/dataplane-mode": "ambient"}


async def test_a_pod_is_advertised_only_after_its_capture() -> None:
    """A peer that spoke HBONE before would meet a closed port."""
    async with fake_mesh(nodes=1) as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        mesh.agent("node-1").broken["client"] = "wait"
        told = mesh.ztunnel("node-1").log

        await mesh.enroll("shop/" + names(mesh)[0])

        captured = mesh.agent("node-1").log.index(f"capture {names(mesh)[0]}")
        assert captured >= 0
        assert told[-1] == f"{names(mesh)[0]} HBONE"


async def test_a_pod_is_released_only_after_every_daemon_stopped_using_it() -> None:
    """A peer that has not heard would dial 15008, where nobody listens any more."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop")
        slow = mesh.ztunnel("node-2")
        slow.stuck = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: mesh.enroll("shop", mode="none"))
            await mesh.until(lambda: not any(p.capture.advertised for p in mesh.cluster.pods()))
            with trio.move_on_after(0.05):
                await trio.sleep_forever()
            released = [line for each in ("node-1", "node-2") for line in mesh.agent(each).log]
            assert not [line for line in released if line.startswith("release")]
            await slow.release()

        assert {each.mode for each in mesh.agent("node-1").pods} == {"none"}
        assert set(slow.protocols().values()) == {Protocol.TCP}


async def test_enrolling_twice_changes_nothing_the_second_time() -> None:
    """Scripts repeat themselves."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop")
        version = mesh.cluster.registry().version

        result = await mesh.enroll("shop")

        assert mesh.cluster.registry().version == version
        assert all(pod["enrolled"] for pod in result["pods"])
        assert (result["restarts"], result["failed"]) == (0, 0)


async def test_a_label_in_a_manifest_does_the_same() -> None:
    """What kubectl label does to Istio."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()

        await mesh.apply(
            "apiVersion: v1\nkind: Namespace\n"
            "metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}"
        )
        await mesh.until(lambda: all(pod.capture.advertised for pod in mesh.cluster.pods()))
        await mesh.ready()

        assert set(mesh.ztunnel("node-2").protocols().values()) == {Protocol.HBONE}


async def test_one_pod_leaves_an_enrolled_namespace() -> None:
    """A pod's label beats its namespace's."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop")

        await mesh.enroll("shop/client", mode="none")

        protocols = mesh.ztunnel("node-1").protocols()
        assert protocols.pop("client") is Protocol.TCP
        assert set(protocols.values()) == {Protocol.HBONE}


async def test_a_pod_that_cannot_be_captured_stays_as_it_was_and_the_rest_is_enrolled() -> None:
    """Port 15008 taken, for example: one pod's trouble is not 249 others'."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        for node in ("node-1", "node-2"):
            mesh.agent(node).broken["client"] = "port 15008 is taken by pid 7"

        result = await mesh.enroll("shop")

        (failed,) = [pod for pod in result["pods"] if pod["reason"]]
        assert result["failed"] == 1
        assert (failed["name"], failed["reason"]) == ("client", "port 15008 is taken by pid 7")
        assert [pod["name"] for pod in result["pods"] if not pod["enrolled"]] == ["client"]
        protocols = mesh.ztunnel("node-1").protocols()
        assert protocols.pop("client") is Protocol.TCP
        assert set(protocols.values()) == {Protocol.HBONE}
        status = await mesh.desk.call("status")
        (shop,) = [each for each in status["namespaces"] if each["name"] == "shop"]
        (shown,) = [each for each in shop["states"] if each["name"] == "client"]
        assert (shown["state"], shown["reason"]) == ("failed", "port 15008 is taken by pid 7")
        for node in ("node-1", "node-2"):
            mesh.agent(node).broken.clear()
        assert (await mesh.enroll("shop"))["failed"] == 0
        assert set(mesh.ztunnel("node-1").protocols().values()) == {Protocol.HBONE}


async def test_a_call_of_which_nothing_came_leaves_no_label() -> None:
    """A namespace of which no pod could be captured, and a pod that was asked for by name."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        for pod in mesh.cluster.pods():
            mesh.agent(pod.node).broken[pod.name] = "no"

        assert (await mesh.enroll("shop"))["failed"] == 3
        assert not mesh.cluster.store.labels_of_namespace("shop")
        assert (await mesh.enroll("shop/client"))["failed"] == 1
        client = mesh.cluster.pod("shop", "client")
        assert client is not None
        assert "istio.io/dataplane-mode" not in client.labels


async def test_a_lost_pod_is_not_advertised_until_it_is_enrolled_again() -> None:
    """Its agent's word counts, whenever it comes; it is told to hold the pod all the while."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop")
        client = mesh.cluster.pod("shop", "client")
        assert client is not None
        agent, ztunnel = mesh.agent(client.node), mesh.ztunnel("node-2")

        await agent.send(
            agent.end.report(PodReport(pod=client.uid, state="lost", reason="flushed", repairs=2))
        )
        await mesh.until(lambda: ztunnel.protocols()["client"] is Protocol.TCP)

        assert {pod.mode for pod in agent.pods} == {"ambient"}
        status = await mesh.desk.call("get", kind="Pod", name="client")
        shown = status[0]["status"]["ambient"]
        assert (shown["enrolled"], shown["state"], shown["reason"]) == (False, "lost", "flushed")
        assert (shown["attestation"], shown["repairs"]) == ("lost", 2)
        await agent.send(agent.end.report(PodReport(pod=client.uid, state="enrolled", repairs=3)))
        await mesh.until(lambda: ztunnel.protocols()["client"] is Protocol.HBONE)


async def test_status_says_who_vouches_and_what_passes_by() -> None:
    """An agent that is silent vouches for nobody."""
    async with fake_mesh(nodes=1) as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop")

        async def states() -> dict[str, dict[str, object]]:
            found = await mesh.desk.call("status")
            (shop,) = [each for each in found["namespaces"] if each["name"] == "shop"]
            return {each["name"]: each for each in shop["states"]}

        assert {each["attestation"] for each in (await states()).values()} == {"unattested"}
        agent, client = mesh.agent("node-1"), mesh.cluster.pod("shop", "client")
        assert client is not None
        word = {"enrolled": 3, "lost": 0, "checks": 30, "repairs": 1, "plaintext": {client.uid: 2}}
        await agent.send(agent.end.extra("attestation", **word))
        await mesh.until(lambda: mesh.cluster.agents.attestation("node-1") is not None)

        shown = await states()
        assert {each["attestation"] for each in shown.values()} == {"attested"}
        assert shown["client"]["plaintext_connections"] == 2
        (node,) = (await mesh.desk.call("status"))["links"]
        assert (node["attestation"]["enrolled"], node["attestation"]["repairs"]) == (3, 1)


async def test_a_dry_run_shows_rules_and_consequences() -> None:
    """What stays plaintext, what is in the way; and of an enrolled pod nothing is left to say."""
    blocking = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web-only, namespace: shop}
spec: {podSelector: {}, ingress: [{ports: [{port: 80}]}]}
"""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        missing = (await mesh.enroll("shop", dry_run=True))["pods"][0]["findings"][0]
        assert missing["reason"] == "its service account 'api' does not exist in namespace 'shop'"
        account = "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: %s, namespace: shop}"
        await mesh.apply("\n---\n".join(account % name for name in ("api", "client")))
        for node in ("node-1", "node-2"):
            mesh.agent(node).broken["client"] = "port 15001 is taken by nginx (pid 7)"

        result = await mesh.enroll("shop", dry_run=True)
        by_name = {pod["name"]: pod for pod in result["pods"]}

        assert result["blocked"] == 1
        assert by_name["client"]["findings"][0]["reason"] == "port 15001 is taken by nginx (pid 7)"
        assert all(pod["rules"].startswith("table inet ambient") for pod in result["pods"])
        assert {pod["established_connections_kept"] for pod in result["pods"]} == {1}
        assert by_name["client"]["established_connections"] == ["10.244.1.2:80 - 10.244.1.3:40112"]
        assert not mesh.cluster.store.labels_of_namespace("shop")

        await mesh.apply(blocking)
        result = await mesh.enroll("shop", dry_run=True, existing="reset")
        assert result["blocked"] == 3
        assert {pod["established_connections_reset"] for pod in result["pods"]} == {1}
        reasons = {each["reason"] for pod in result["pods"] for each in pod["findings"]}
        assert "NetworkPolicy 'web-only' lets no HBONE in (TCP 15008)" in reasons


async def test_a_dry_run_changes_nothing() -> None:
    """It says what would be."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP + "---" + HOST)
        await mesh.ready()
        before = mesh.cluster.registry().version

        result = await mesh.enroll("shop", mode="sidecar", dry_run=True)

        assert result["dry_run"]
        assert result["restarts"] == 3
        assert {pod["reason"] for pod in result["pods"]} == {"would be sidecar, by a restart"}
        assert list(result["skipped"].values()) == [
            "the pod uses the host's network: its traffic is the node's"
        ]
        assert mesh.cluster.registry().version == before


@pytest.mark.parametrize(
    ("target", "error", "reason"),
    [
        ("nowhere", RpcError, "namespace 'nowhere' does not exist"),
        ("shop/nobody", RpcError, "pod 'nobody' does not exist"),
        ("shop/host", RpcError, "host's network"),
        ("shop/injected", RpcError, "sidecar present"),
    ],
    ids=["unknown-namespace", "unknown-pod", "host-network", "sidecar"],
)
async def test_what_cannot_be_enrolled_is_refused_with_the_reason(
    target: str, error: type[Exception], reason: str
) -> None:
    """And then nothing was written."""
    injected = HOST.replace("host", "injected").replace("injectedNetwork: true", "hostNetwork: false")
    injected = injected.replace("labels:", "annotations: {sidecar.istio.io/status: '{}'}, labels:")
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP + "---" + HOST + "---" + injected)
        await mesh.ready()

        with pytest.raises(error, match=reason):
            await mesh.enroll("shop", target)

        assert not mesh.cluster.store.labels_of_namespace("shop")


async def test_nonsense_is_bad_input() -> None:
    """A caller's mistake must not look like the mesh's."""
    async with fake_mesh() as mesh:
        with pytest.raises(ConfigError, match="one of"):
            await mesh.enroll("default", mode="half")
        with pytest.raises(ConfigError, match="not a target"):
            await mesh.desk.call("enroll", targets=[{"kind": "node"}])


async def test_a_host_network_pod_is_passed_over_with_its_namespace() -> None:
    """Istio does the same, without saying so."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP + "---" + HOST)
        await mesh.ready()

        result = await mesh.enroll("shop")

        (host,) = [pod for pod in result["pods"] if pod["name"] == "host"]
        assert not host["enrolled"]
        assert "host's network" in host["reason"]
        assert result["failed"] == 0


async def test_a_wait_runs_out_and_says_for_whom() -> None:
    """Exit code 124, and the enrollment goes on."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        mesh.ztunnel("node-2").stuck = True

        with pytest.raises(RpcError, match="not done within") as caught:
            await mesh.enroll("shop", timeout=0.1)

        assert caught.value.code == 124
        await mesh.ztunnel("node-2").release()
        await mesh.ready()
        assert set(mesh.ztunnel("node-2").protocols().values()) == {Protocol.HBONE}


async def test_sidecars_come_and_go_by_restarts_that_are_counted() -> None:
    """As in a cluster: a new uid, the old name and address, and ISTIO_MTLS once it is ready."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        before = {pod.name: (pod.uid, pod.addresses, pod.node) for pod in mesh.cluster.pods()}

        result = await mesh.enroll("shop", mode="sidecar")

        after = {pod.name: (pod.uid, pod.addresses, pod.node) for pod in mesh.cluster.pods()}
        assert (result["restarts"], result["failed"]) == (3, 0)
        assert set(mesh.ztunnel("node-1").protocols().values()) == {Protocol.ISTIO_MTLS}
        assert {name: rest[1:] for name, rest in after.items()} == {n: r[1:] for n, r in before.items()}
        assert all(after[name][0] == f"{uid[:-2]}#2" for name, (uid, *_) in before.items())
        assert not mesh.agent("node-1").pods

        result = await mesh.enroll("shop", mode="none")

        assert result["restarts"] == 3
        assert set(mesh.ztunnel("node-1").protocols().values()) == {Protocol.TCP}


async def test_from_sidecar_to_ambient_in_one_call() -> None:
    """The sidecars go by a restart, and then the pods are captured."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop", mode="sidecar")

        result = await mesh.enroll("shop", mode="ambient")

        assert (result["restarts"], result["failed"]) == (3, 0)
        assert set(mesh.ztunnel("node-1").protocols().values()) == {Protocol.HBONE}

        result = await mesh.enroll("shop", mode="sidecar", engine="envoy")

        assert result["restarts"] == 3
        assert {pod.engine for pod in mesh.cluster.pods()} == {"envoy"}


async def test_replicas_restart_one_after_the_other() -> None:
    """A service with two pods keeps one."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        mesh.fabric.log.clear()

        await mesh.enroll("shop", mode="sidecar")

        api = [line for line in mesh.fabric.log if " api-v1-" in line]
        assert [line.split()[0] for line in api] == ["remove", "add", "remove", "add"]


async def test_a_pod_with_a_label_of_its_own_stays_and_says_why() -> None:
    """Otherwise "released: 3 pods" would be a lie about one of them."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        await mesh.enroll("shop/client")

        result = await mesh.enroll("shop", mode="none")

        (client,) = [pod for pod in result["pods"] if pod["name"] == "client"]
        assert client["enrolled"]
        assert client["reason"] == "its own label asks for mode ambient, and beats its namespace's"
        assert {pod["reason"] for pod in result["pods"]} == {client["reason"], ""}
