"""Who gets which address."""

from __future__ import annotations

import pytest

from ambient.errors import ConfigError
from ambient.model.addressing import LOOPBACK, NETNS, NodeAddresses, lowest_free


def test_a_node_and_its_pods_share_a_network() -> None:
    """Routes between nodes are per node, not per pod."""
    assert NETNS.node(12) == NodeAddresses(
        gateway=("10.244.12.1", "fd00:10:244:12::1"),
        pod_networks=("10.244.12.0/24", "fd00:10:244:12::/64"),
        uplink=("100.64.12.2", "fd00:100:64:12::2"),
        router=("100.64.12.1", "fd00:100:64:12::1"),
    )
    assert NETNS.pod(12, 34) == ("10.244.12.34", "fd00:10:244:12::34")


def test_services_have_kubeadms_range() -> None:
    """What people paste from a real cluster fits; the DNS is where they expect it."""
    assert NETNS.dns == ("10.96.0.10", "fd00:10:96::a")
    assert NETNS.service(300) == ("10.96.1.44", "fd00:10:96::12c")
    assert NETNS.service_networks == ("10.96.0.0/16", "fd00:10:96::/112")


def test_loopback_has_ipv4_only() -> None:
    """Only 127/8 is all ours without a namespace."""
    assert LOOPBACK.node(1) == NodeAddresses(
        gateway=("127.244.1.1",),
        pod_networks=("127.244.1.0/24",),
        uplink=("127.64.1.2",),
        router=("127.64.1.1",),
    )
    assert LOOPBACK.pod(1, 2) == ("127.244.1.2",)
    assert LOOPBACK.dns == ("127.96.0.10",)
    assert LOOPBACK.service_networks == ("127.96.0.0/16",)


def test_numbers_outside_are_refused() -> None:
    """An octet has an end; so has a node."""
    with pytest.raises(ConfigError, match=r"node number 255 is not in 1\.\.254"):
        NETNS.node(255)
    with pytest.raises(ConfigError, match=r"pod number 1 is not in 2\.\.254"):
        NETNS.pod(1, 1)
    with pytest.raises(ConfigError, match=r"service number 0 is not in 1\.\.65534"):
        NETNS.service(0)


def test_the_lowest_free_number_is_taken() -> None:
    """Addresses are stable from run to run."""
    assert lowest_free({2, 3, 5}, 2, 254) == 4
    with pytest.raises(ConfigError, match="all addresses from 2 to 3 are in use"):
        lowest_free({2, 3}, 2, 3)
