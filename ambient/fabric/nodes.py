"""Nodes: their namespaces, and the daemons that every node has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from ambient.fabric.daemons import Daemon, Keeper
from ambient.fabric.wiring_plan import NodePlan


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
    """Where the node's agent listens for ambient-cni."""
    return f"{run_dir}/nodes/{node}/cni.sock"


def node_environment(base: Mapping[str, str], run_dir: str, plan: NodePlan) -> dict[str, str]:
    """What every daemon of a node is told."""
    return {
        **base,
        "NODE_NAME": plan.name,
        "AMBIENT_NODE_IP": plan.ip,
        "INPOD_UDS": zds_path(run_dir, plan.name),
        "AMBIENT_CNI_SOCKET": cni_path(run_dir, plan.name),
    }


def daemons(base: Mapping[str, str], run_dir: str, node: Node) -> tuple[Daemon, Daemon]:
    """The agent and the ztunnel of *node*."""
    os.makedirs(os.path.dirname(zds_path(run_dir, node.name)), exist_ok=True)
    environment = node_environment(base, run_dir, node.plan)

    def daemon(role: str, module: str) -> Daemon:
        return Daemon(
            name=f"{role}/{node.name}",
            role=role,
            arguments=("-m", module),
            environment=environment,
            log=f"{run_dir}/logs/{role}-{node.name}.log",
            node=node.name,
            netns=node.netns,
        )

    return daemon("agent", "ambient.redirect"), daemon("ztunnel", "ztunnel")


async def start_daemons(nursery: trio.Nursery, keeper: Keeper, wanted: tuple[Daemon, ...]) -> None:
    """Keep *wanted* running in *nursery*; return when each has started."""
    async with trio.open_nursery() as starting:
        for daemon in wanted:
            starting.start_soon(nursery.start, keeper.keep, daemon)
