"""Our own wiring of a pod, as the kernel has it."""

from __future__ import annotations

import struct

from ambient.engine.netlink import NetlinkSocket
from ambient.fabric import wiring
from ambient.fabric.wiring_plan import POD_SYSCTLS, NodePlan
from ambient.wire.netlink import AF_INET, AF_INET6, NLM_F_DUMP, Request
from tests.lab import in_namespaces

# linux/rtnetlink.h, linux/neighbour.h.
RTM_GETNEIGH, NUD_PERMANENT, NUD_NOARP = 30, 0x80, 0x40
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
ADDRESSES = ("10.244.1.2", "fd00:10:244:1::2")


def neighbours(netns: int) -> list[int]:
    """The states of all but those that need no address, loopback's for one."""
    with NetlinkSocket(netns) as nl:
        found = [
            message
            for family in (AF_INET, AF_INET6)
            for message in nl.dump(
                Request(RTM_GETNEIGH, bytes([family]) + bytes(11), "list neighbours", NLM_F_DUMP)
            )
        ]
    states = [_NEIGHBOUR.unpack_from(message.body)[2] for message in found]
    return [state for state in states if not state & NUD_NOARP]


@in_namespaces
def test_a_pod_and_its_node_know_each_other_without_asking() -> None:
    """What is asked for is kept in one small table for all namespaces, which a few hundred pods fill."""
    wiring.prepare_outer()
    plan = NodePlan(1)
    node = wiring.add_node(plan)
    pod = wiring.make_netns(POD_SYSCTLS)

    wiring.add_pod(plan, node, pod, ADDRESSES)

    for netns in (pod, node):
        states = neighbours(netns)
        assert states.count(NUD_PERMANENT) == len(ADDRESSES), (netns, states)
