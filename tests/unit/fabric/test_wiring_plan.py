"""How nodes and pods are connected."""

from __future__ import annotations

from ambient.fabric import wiring_plan
from ambient.fabric.wiring_plan import NodePlan


def test_a_nodes_number_says_everything() -> None:
    """Two meshes with equal plans do not meet: each has its own outer namespace."""
    plan = NodePlan(12)

    assert (plan.name, plan.link, plan.ip) == ("node-12", "n12", "100.64.12.2")
    assert "10.244.12.1" in plan.local_addresses
    assert "10.96.0.10" in plan.local_addresses
    assert wiring_plan.PROBE_SOURCE in plan.local_addresses


def test_link_names_of_a_nodes_pods_differ() -> None:
    """A name is free again only when its pod is gone."""
    names = {
        wiring_plan.pod_link((f"10.244.1.{index}", f"fd00:10:244:1::{index}")) for index in range(2, 255)
    }

    assert len(names) == 253
    assert max(map(len, names)) <= 15


def test_a_kernel_without_ipv6_gets_none() -> None:
    """Pods with one family are better than no mesh at all."""
    both = ("10.244.1.2", "fd00:10:244:1::2")

    assert wiring_plan.usable(both, ipv6=True) == both
    assert wiring_plan.usable(both, ipv6=False) == ("10.244.1.2",)


def test_a_rootless_pod_asks_only_for_gids_that_exist() -> None:
    """The kernel refuses a ping range with gids that the user namespace does not map."""
    assert wiring_plan.sysctls(rootless=True)["net/ipv4/ping_group_range"] == "0 0"
    assert wiring_plan.sysctls(rootless=False)["net/ipv4/ping_group_range"] == "0 2147483647"
