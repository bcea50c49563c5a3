"""What the supervisor answers at ``fabric.sock``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import trio

from ambient.engine.rpc import Call, RpcError, serve_admin
from ambient.errors import AmbientError
from ambient.fabric import rundir
from ambient.fabric.daemons import PATIENCE_SECONDS, note
from ambient.fabric.guests import Guests
from ambient.fabric.nodes import Node
from ambient.fabric.pods import Pods
from ambient.fabric.table import Table
from ambient.fabric.ztunnels import ZtunnelKeeper

TIMED_OUT = 124
DEFAULT_TIMEOUT = 60.0


@dataclass(slots=True)
class Desk:
    """The fabric's methods: ``status``, ``wait_ready``, ``restart``, ``restart_ztunnel``, ``down``;
    and those of guests.

    Args:
        stop: Set to take the mesh down.
    """

    run_dir: str
    nodes: Mapping[str, Node]
    table: Table
    pods: Pods
    ztunnels: Mapping[str, ZtunnelKeeper]
    stop: trio.Event
    guests: Guests

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        methods = {
            "status": self.status,
            "wait_ready": self.wait_ready,
            "restart": self.restart,
            "restart_ztunnel": self.restart_ztunnel,
            "down": self.down,
            "adopt": self.guests.adopt,
            "examine": self.guests.examine,
            "find_guest": self.guests.find,
            "dismiss": self.guests.dismiss,
        }
        await serve_admin(
            f"{self.run_dir}/fabric.sock",
            methods,
            on_failure=lambda exc: note(f"fabric.sock: {exc!r}"),
            task_status=task_status,
        )

    async def status(self, _call: Call) -> dict[str, Any]:
        """Nodes and processes; every PID is a host PID."""
        record = rundir.read(self.run_dir)
        if record is None:
            raise AmbientError(f"{self.run_dir}/{rundir.RECORD_NAME} is gone")
        return {
            **asdict(record),
            "run_dir": self.run_dir,
            "nodes": [self._node(node) for node in self.nodes.values()],
            "processes": [entry.status() for entry in self.table],
            "outer": {"pid": record.init_pid},
            "departed": self.guests.departed(),
        }

    def _node(self, node: Node) -> dict[str, Any]:
        return {
            "name": node.name,
            "address": node.plan.ip,
            "addresses": list(node.plan.addresses.uplink),
            "link": node.plan.link,
            "agent_pid": self.table.pid(f"agent/{node.name}"),
            "ztunnel_pid": self.table.pid(f"ztunnel/{node.name}"),
        }

    async def wait_ready(self, call: Call) -> dict[str, Any]:
        """Wait until all pods are ready, and at least ``pods`` of them, and those named in ``names``.

        The caller knows better than we which pods are to come: an order of control may be on its way.
        """
        timeout = float(call.params.get("timeout", DEFAULT_TIMEOUT))
        with trio.move_on_after(timeout):
            wanted = (int(call.params.get("pods", 0)), frozenset(call.params.get("names", ())))
            return {"pods": await self.pods.wait_ready(*wanted)}
        waiting = ", ".join(f"{name} ({why})" for name, why in sorted(self.pods.unready().items()))
        raise RpcError(TIMED_OUT, f"not ready after {timeout:g} s: {waiting or 'fewer pods than expected'}")

    async def restart(self, call: Call) -> dict[str, Any]:
        """Stop the daemon or program of that ``name`` gracefully; it is started again at once.

        A ztunnel is replaced: no restart of it need cost anybody a connection.
        """
        name = str(call.params.get("name", ""))
        for ztunnel in self.ztunnels.values():
            if name == ztunnel.entry.name:
                await ztunnel.upgrade()
                return {"name": name}
        entry = next((each for each in self.table if each.name == name and each.process is not None), None)
        if entry is None or entry.process is None or name == "control":
            raise AmbientError(f"no {name!r} that can be restarted; see: ambient status")
        await self.pods.keeper.init.stop(entry.process, PATIENCE_SECONDS)
        return {"name": name}

    async def restart_ztunnel(self, call: Call) -> dict[str, Any]:
        """Replace the ztunnel of ``node`` while it serves; answers when the new one does."""
        node = str(call.params.get("node", ""))
        if node not in self.ztunnels:
            names = ", ".join(self.ztunnels) or "none"
            raise AmbientError(f"node {node!r} has no ztunnel; nodes that have one: {names}")
        return await self.ztunnels[node].upgrade()

    async def down(self, _call: Call) -> dict[str, Any]:
        """Take the mesh down; init ends, and the run directory with it, after the answer."""
        self.stop.set()
        return {"stopping": sum(1 for _ in self.table)}
