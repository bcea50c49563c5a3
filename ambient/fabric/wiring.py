"""Making what ``wiring_plan`` draws: namespaces, links, addresses and routes, by netlink."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import open_netns
from ambient.fabric import syscalls
from ambient.fabric.pause import write_sysctls
from ambient.fabric.syscalls import Namespace
from ambient.fabric.wiring_plan import (
    DEFAULT_V4,
    DEFAULT_V6,
    NODE_SYSCTLS,
    POD_ROUTER_V6,
    UPLINK,
    NodePlan,
    host_prefix,
    is_v6,
    link_prefix,
    pod_link,
    usable,
)
from ambient.model.addressing import NETNS


def _usable(addresses: Iterable[str]) -> tuple[str, ...]:
    return usable(addresses, ipv6=os.path.isdir("/proc/sys/net/ipv6"))


def make_netns(sysctls: Mapping[str, str]) -> int:
    """Make a network namespace and return a descriptor that keeps it.

    In this thread, which is back at home afterwards; nothing is named, so nothing is left by a crash.
    """
    home = open_netns("/proc/thread-self/ns/net")
    try:
        syscalls.unshare(Namespace.NET)
        try:
            write_sysctls(sysctls)
            made = open_netns("/proc/thread-self/ns/net")
        finally:
            syscalls.setns(home, Namespace.NET)
    finally:
        os.close(home)
    with NetlinkSocket(made) as netlink:
        netlink.set_up("lo")
    return made


def prepare_outer() -> None:
    """Make this process's namespace the router between nodes."""
    write_sysctls(NODE_SYSCTLS)
    with NetlinkSocket() as netlink:
        netlink.set_up("lo")


def add_node(plan: NodePlan, *, bridged: bool = False) -> int:
    """Make a node's namespace, linked to this one; return its descriptor.

    Args:
        bridged: Its pods sit on its uplink and pass its IP stack by, so this router is their gateway.
    """
    node = make_netns(NODE_SYSCTLS)
    gateways = plan.addresses.gateway if bridged else ()
    with NetlinkSocket() as outer:
        outer.add_veth(plan.link, UPLINK, peer_netns=node)
        for address in _usable(plan.addresses.router):
            outer.add_address(plan.link, f"{address}/{link_prefix(address)}")
        for address in _usable(gateways):
            outer.add_address(plan.link, f"{address}/{host_prefix(address)}")
        outer.set_up(plan.link)
    with NetlinkSocket(node) as inner:
        for address in _usable(plan.addresses.uplink):
            inner.add_address(UPLINK, f"{address}/{link_prefix(address)}")
        inner.set_up(UPLINK)
        for address in _usable(each for each in plan.local_addresses if each not in gateways):
            inner.add_address("lo", f"{address}/{host_prefix(address)}")
        for router in _usable(plan.addresses.router):
            inner.add_route(DEFAULT_V6 if is_v6(router) else DEFAULT_V4, link=UPLINK, gateway=router)
    # After both ends are up: a route needs its link.
    with NetlinkSocket() as outer:
        networks, uplinks = _usable(plan.addresses.pod_networks), _usable(plan.addresses.uplink)
        for network, gateway in zip(networks, uplinks, strict=True):
            if bridged:
                outer.add_route(network, link=plan.link)
            else:
                outer.add_route(network, link=plan.link, gateway=gateway)
        for address, gateway in zip(_usable(NETNS.dns), uplinks, strict=True):
            if bridged:
                # Any node's name server will do, the last one's does.
                outer.add_route(f"{address}/{host_prefix(address)}", link=plan.link, gateway=gateway)
    return node


def add_pod(plan: NodePlan, node: int, pod: int, addresses: Sequence[str]) -> None:
    """Link the namespace *pod* to *node* and give it its addresses."""
    link = pod_link(addresses)
    addresses = _usable(addresses)
    with NetlinkSocket(node) as outer:
        outer.add_veth(link, UPLINK, peer_netns=pod)
        if any(is_v6(address) for address in addresses):
            outer.add_address(link, f"{POD_ROUTER_V6}/64")
        outer.set_up(link)
    with NetlinkSocket(pod) as inner:
        inner.set_up("lo")
        inner.set_up(UPLINK)
        for address in addresses:
            inner.add_address(UPLINK, f"{address}/{host_prefix(address)}")
            if is_v6(address):
                inner.add_route(DEFAULT_V6, link=UPLINK, gateway=POD_ROUTER_V6)
            else:
                gateway = plan.addresses.gateway[0]
                inner.add_route(f"{gateway}/32", link=UPLINK)
                inner.add_route(DEFAULT_V4, link=UPLINK, gateway=gateway)
        inside = inner.link(UPLINK).mac
    with NetlinkSocket(node) as outer:
        outside = outer.link(link).mac
        for address in addresses:
            outer.add_route(f"{address}/{host_prefix(address)}", link=link)
            outer.add_neighbour(link, address, inside)
    with NetlinkSocket(pod) as inner:
        # Said once and for all: what is asked for is kept in one table for all namespaces, of 1024 entries
        # (net.ipv4.neigh.default.gc_thresh3), and 500 pods fill it: nobody finds anybody any more.
        for address in addresses:
            gateway = POD_ROUTER_V6 if is_v6(address) else plan.addresses.gateway[0]
            inner.add_neighbour(UPLINK, gateway, outside)


def remove_pod(node: int, addresses: Sequence[str]) -> None:
    """Delete a pod's link now; the kernel deletes its namespace when it pleases."""
    with NetlinkSocket(node) as netlink:
        netlink.delete_link(pod_link(addresses))
