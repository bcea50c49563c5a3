"""How nodes and pods are connected: names, routes and sysctls. Pure.

    outer namespace (a router)
      n1 ---------------- eth0   node-1: forwards, answers for the gateway, the DNS and the probes
                                   p2 ------ eth0   pod 10.244.1.2/32, default route by the gateway
                                   p3 ------ eth0   pod 10.244.1.3/32
      n2 ---------------- eth0   node-2 ...

No bridge: every pod hangs on a link of its own and the node routes, so that everything a pod sends
passes the node's IP stack, where virtual addresses are translated.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ambient.model.addressing import NETNS, NodeAddresses

# The router of every pod, whatever its node.
POD_ROUTER_V6 = "fe80::1"
# Source of the probes that stand for kubelet's; exempt from capture in every pod (Istio's numbers).
PROBE_SOURCE = "169.254.7.127"
PROBE_SOURCE_V6 = "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"
# What every network namespace calls the link to its router.
UPLINK = "eth0"
DEFAULT_V4, DEFAULT_V6 = "0.0.0.0/0", "::/0"

# Path under /proc/sys -> value. accept_dad: an address is usable at once instead of after 1 to 2 s
# (measured with CNI's ADD). rp_filter: virtual addresses and probe sources look spoofed to it.
NODE_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    "net/ipv6/conf/all/forwarding": "1",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
    "net/ipv4/conf/all/send_redirects": "0",
    "net/ipv4/conf/default/send_redirects": "0",
    # For programs of pods that share the node's network; see below.
    "net/ipv4/ip_unprivileged_port_start": "0",
}
POD_SYSCTLS = {
    # Port 80 for programs that are nobody's root.
    "net/ipv4/ip_unprivileged_port_start": "0",
    "net/ipv6/conf/all/accept_dad": "0",
    "net/ipv6/conf/default/accept_dad": "0",
    "net/ipv6/conf/default/accept_ra": "0",
    "net/ipv4/conf/all/rp_filter": "0",
    "net/ipv4/conf/default/rp_filter": "0",
}


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node: its number says everything.

    Attributes:
        number: 1, 2, ... as in ``node-1``.
    """

    number: int

    @property
    def name(self) -> str:
        """For example ``"node-1"``."""
        return f"node-{self.number}"

    @property
    def link(self) -> str:
        """The outer end of its link."""
        return f"n{self.number}"

    @property
    def addresses(self) -> NodeAddresses:
        """Of its link and its pods."""
        return NETNS.node(self.number)

    @property
    def ip(self) -> str:
        """The node's own IPv4 address."""
        return self.addresses.uplink[0]

    @property
    def local_addresses(self) -> tuple[str, ...]:
        """What the node answers for besides its link: gateways, cluster DNS, probes."""
        return (*self.addresses.gateway, *NETNS.dns, PROBE_SOURCE, PROBE_SOURCE_V6)


def is_v6(address: str) -> bool:
    """Whether an address or network is IPv6."""
    return ":" in address


def usable(addresses: Iterable[str], *, ipv6: bool) -> tuple[str, ...]:
    """Those of *addresses* that this machine's kernel can have."""
    return tuple(address for address in addresses if ipv6 or not is_v6(address))


def host_prefix(address: str) -> int:
    """The prefix length that means this address alone."""
    return 128 if is_v6(address) else 32


def link_prefix(address: str) -> int:
    """The prefix length of the link between a node and the router."""
    return 64 if is_v6(address) else 30


def pod_link(addresses: Sequence[str]) -> str:
    """Name of the node's end of a pod's link: ``p7`` for ``10.244.N.7``."""
    return f"p{addresses[0].replace(':', '.').rpartition('.')[2]}"


def sysctls(rootless: bool) -> dict[str, str]:
    """What a pod's namespace is set to.

    Args:
        rootless: Only the mesh's own gid exists then, and a range over others is refused.
    """
    return {**POD_SYSCTLS, "net/ipv4/ping_group_range": "0 0" if rootless else "0 2147483647"}
