"""``describe`` against a whole control plane: steps, reasons, policies."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.engine.rpc import RpcError
from tests.flow.fake_mesh import FakeMesh, fake_mesh
from tests.flow.test_control_bringup import SHOP

STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
"""


async def described(mesh: FakeMesh, kind: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = await mesh.desk.call("describe", kind=kind, namespace="shop", name=name)
    return found


def holds(found: dict[str, Any]) -> list[str]:
    return [each["step"] for each in found["way"] if each["holds"]]


async def test_a_pod_before_and_after_its_enrollment() -> None:
    """Why not, and then how."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()

        before = await described(mesh, "Pod", "client")
        await mesh.apply(STRICT)
        await mesh.enroll("shop")
        after = await described(mesh, "pod", "client")

        assert not before["enrolled"]
        assert "label istio.io/dataplane-mode=ambient" in before["reason"]
        assert holds(before) == []
        assert (before["strict"], after["strict"]) == (False, True)
        assert (after["enrolled"], after["reason"], after["state"]) == (True, "", "enrolled")
        assert holds(after) == ["capture", "HBONE", "policies"]
        (policy,) = after["policies"]
        assert (policy["name"], policy["action"], policy["enforced_by"]) == (
            "istio-system/istio_converted_static_strict",
            "DENY",
            "ztunnel",
        )


async def test_a_deployments_name_means_one_of_its_pods() -> None:
    """As with authz check."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()

        assert (await described(mesh, "Pod", "api-v1"))["services"] == ["shop/api"]


async def test_a_service_counts_its_enrolled_endpoints() -> None:
    """Half of them is not all."""
    async with fake_mesh() as mesh:
        await mesh.apply(SHOP)
        await mesh.ready()
        one = next(pod.name for pod in mesh.cluster.pods() if pod.name.startswith("api"))
        await mesh.enroll(f"shop/{one}")

        found = await described(mesh, "Service", "api")

        assert [each["enrolled"] for each in found["endpoints"]].count(True) == 1
        assert found["way"][0] == {
            "step": "capture",
            "holds": False,
            "detail": "1 of 2 endpoints are enrolled",
        }


async def test_what_does_not_exist_is_refused() -> None:
    """With the next step."""
    async with fake_mesh() as mesh:
        for kind in ("Pod", "Service"):
            with pytest.raises(RpcError, match="see: ambient get"):
                await described(mesh, kind, "nobody")
