"""How a bare pod is attached to its node, by the name of ``--cni``."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns
from ambient.fabric import cni, cni_plan, wiring
from ambient.fabric.wiring_plan import NodePlan, is_v6
from benchmarks.enrolling.fabric import Wire

PLUGIN_SECONDS = 20.0


def _by_plugin(kind: str) -> Wire:
    """The real CNI plugin; its addresses by the plugin ``static``, which keeps no book that could be left."""

    def wire(plan: NodePlan, node: int, pod: int, addresses: Sequence[str]) -> None:
        (config,) = cni_plan.chain(kind, plan, data_dir="", socket="", ipv6=True)
        given = [
            {"address": f"{address}/{64 if is_v6(address) else 24}", "gateway": gateway}
            for address, gateway in zip(addresses, plan.addresses.gateway, strict=True)
        ]
        ipam = {"type": "static", "addresses": given, "routes": config["ipam"]["routes"]}
        with NetlinkSocket(pod) as netlink:
            netlink.set_up("lo")
        environment = cni_plan.environment(
            "ADD",
            container=f"c{addresses[0]}",
            netns=f"/proc/{os.getpid()}/fd/{pod}",
            arguments={},
            path=cni_plan.DIRECTORIES,
        )
        body = cni_plan.request({**config, "ipam": ipam}, cni_plan.network_name(plan))
        with in_netns(node):
            subprocess.run(
                (cni.find(kind),),
                input=body,
                env={**os.environ, **environment},
                capture_output=True,
                check=True,
                timeout=PLUGIN_SECONDS,
            )

    return wire


WIRES: dict[str, Wire] = {"builtin": wiring.add_pod, **{kind: _by_plugin(kind) for kind in cni_plan.KINDS}}
# Whose pods sit on the node's uplink and pass its IP stack by.
BRIDGED = frozenset({"macvlan"})
