"""Nodes: their namespaces, and the daemons that every node has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from ambient.fabric.daemons import Daemon, Keeper
from ambient.fabric.restart_plan import NODE_RESTART
from ambient.fabric.wiring_plan import NodePlan
from ambient.fabric.ztunnels import ZtunnelKeeper
from ambient.model.addressing import NETNS


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is wired.

    Attributes:
        netns: Descriptor of its network namespace; None in the loopback fabric, where there is none.
    """

    plan: NodePlan
    netns: int | None

    @property
    def name(self) -> str:
        """For example ``"node-1"``."""
        return self.plan.name


def zds_path(run_dir: str, node: str) -> str:
    """Where the node's agent listens for its ztunnel."""
    return f"{run_dir}/nodes/{node}/zds.sock"


def cni_path(run_dir: str, node: str) -> str:
    """Where the node's agent answers ambient-cni, and the command line."""
    return f"{run_dir}/nodes/{node}/cni.sock"


def admin_path(run_dir: str, node: str) -> str:
    """Where the node's ztunnel answers the command line."""
    return f"{run_dir}/nodes/{node}/admin.sock"


def snapshot_path(run_dir: str, node: str) -> str:
    """Where the node's ztunnel keeps what it knows of the mesh, for the next one."""
    return f"{run_dir}/nodes/{node}/mesh.snapshot"


def node_environment(base: Mapping[str, str], run_dir: str, plan: NodePlan) -> dict[str, str]:
    """What every daemon of a node is told."""
    return {
        **base,
        "NODE_NAME": plan.name,
        "AMBIENT_NODE_IP": plan.ip,
        "INPOD_UDS": zds_path(run_dir, plan.name),
        "AMBIENT_CNI_SOCKET": cni_path(run_dir, plan.name),
        "AMBIENT_MESH_SNAPSHOT": snapshot_path(run_dir, plan.name),
    }


def daemons(base: Mapping[str, str], run_dir: str, node: Node) -> tuple[Daemon, Daemon]:
    """The agent and the ztunnel of *node*."""
    os.makedirs(os.path.dirname(zds_path(run_dir, node.name)), exist_ok=True)
    environment = node_environment(base, run_dir, node.plan)
    # As in a cluster: what the mesh does not know is asked of the cluster's name server.
    ztunnels = {
        "AMBIENT_DNS_UPSTREAMS": " ".join(NETNS.dns),
        "AMBIENT_ADMIN_UDS": admin_path(run_dir, node.name),
    }

    def daemon(role: str, module: str, environment: Mapping[str, str]) -> Daemon:
        return Daemon(
            name=f"{role}/{node.name}",
            role=role,
            arguments=("-m", module),
            environment=environment,
            log=f"{run_dir}/logs/{role}-{node.name}.log",
            node=node.name,
            netns=node.netns,
            restart=NODE_RESTART,
        )

    return (
        daemon("agent", "ambient.redirect", environment),
        daemon("ztunnel", "ztunnel", environment | ztunnels),
    )


async def start_daemons(
    nursery: trio.Nursery, keeper: Keeper, wanted: Mapping[str, tuple[Daemon, Daemon]]
) -> dict[str, ZtunnelKeeper]:
    """Keep the (agent, ztunnel) of each node running in *nursery*; return when all have started."""
    found = {node: ZtunnelKeeper(keeper, ztunnel) for node, (_, ztunnel) in wanted.items()}
    async with trio.open_nursery() as starting:
        for node, (agent, _) in wanted.items():
            starting.start_soon(nursery.start, keeper.keep, agent)
            starting.start_soon(nursery.start, found[node].keep)
    return found
