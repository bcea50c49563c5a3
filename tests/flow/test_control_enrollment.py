"""Enrolling and un-enrolling: the order of things, the way back, and what is refused."""

from __future__ import annotations

import pytest
import trio

from ambient.engine.rpc import RpcError
from ambient.errors import ConfigError
from ambient.model.workload import Protocol
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


async def test_a_pod_that_cannot_be_captured_undoes_the_call() -> None:
    """Port 15008 taken, for example: nothing is left half done."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        for node in ("node-1", "node-2"):
            mesh.agent(node).broken["client"] = "port 15008 is taken by pid 7"

        result = await mesh.enroll("shop")

        (failed,) = [pod for pod in result["pods"] if pod["reason"]]
        assert result["failed"] == 1
        assert (failed["name"], failed["reason"]) == ("client", "port 15008 is taken by pid 7")
        assert not any(pod["enrolled"] for pod in result["pods"])
        assert set(mesh.ztunnel("node-1").protocols().values()) == {Protocol.TCP}
        assert not mesh.cluster.store.labels_of_namespace("shop")
        for node in ("node-1", "node-2"):
            mesh.agent(node).broken.clear()
        assert (await mesh.enroll("shop"))["failed"] == 0


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
