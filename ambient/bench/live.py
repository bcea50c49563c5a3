"""The real mesh behind ``MeshPort``: asked by its admin sockets, entered like any pod."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ambient.bench.capture import link_bytes
from ambient.bench.measure import Proxy, Switched
from ambient.bench.plan import Turn
from ambient.bench.scenario import Scenario
from ambient.bench.talker import ChildTalker
from ambient.engine.blocking import BlockingAdminClient
from ambient.errors import AmbientError, Unavailable
from ambient.fabric import boot, clean, enter

PROXY_ROLES = frozenset({"ztunnel", "sidecar", "waypoint"})
WAYPOINT = "waypoint"
# A sidecar switch restarts every pod of the namespace; picked, not measured.
SWITCH_SECONDS = 60.0
_NODE_LINK = re.compile(r"^\s*(n\d+):", re.MULTILINE)


def proxies_among(processes: Sequence[Mapping[str, Any]]) -> list[Proxy]:
    """The proxies among *processes*, as ``status`` lists them.

    What stands below a proxy's name (``ztunnel/node-1/zygote``, one that drains) is a part of it.
    """
    running = [one for one in processes if one["role"] in PROXY_ROLES and one.get("pid")]
    names = {str(one["name"]) for one in running}
    parts: dict[str, list[int]] = {}
    for one in running:
        above = str(one["name"]).rpartition("/")[0]
        if above in names:
            parts.setdefault(above, []).append(int(one["pid"]))
    return [
        Proxy(
            name=str(one["name"]),
            role=str(one["role"]),
            node=str(one.get("node") or ""),
            pod=str(one["pod"]) if one.get("pod") else None,
            pid=int(one["pid"]),
            beside=tuple(sorted(parts.get(str(one["name"]), ()))),
        )
        for one in running
        if str(one["name"]).rpartition("/")[0] not in names
    ]


class LiveMesh:
    """One running mesh and the scenario in it; close it."""

    def __init__(self, run_dir: Path, scenario: Scenario) -> None:
        record = clean.running(str(run_dir))
        if record is None:
            raise Unavailable(f"no mesh is running in {run_dir}; start one with: ambient up")
        self._init = record.init_pid
        self._scenario = scenario
        self._control = BlockingAdminClient.connect(run_dir / "control.sock", SWITCH_SECONDS)
        self._fabric = BlockingAdminClient.connect(run_dir / "fabric.sock", SWITCH_SECONDS)
        try:
            self._waypoint = self._has_waypoint()
            self.status: Mapping[str, Any] = self._fabric.call("status")
        except AmbientError:
            self.close()
            raise

    def _has_waypoint(self) -> bool:
        """Whether the waypoint that a bench would make is there already, left by an earlier one.

        Raises:
            AmbientError: another one is in the way, which bench must not take away.
        """
        found = self._control.call("waypoint_list")["items"]
        mine = {str(one["name"]) for one in found if one["namespace"] == self._scenario.namespace}
        if others := mine - {WAYPOINT}:
            raise AmbientError(f"waypoint {others.pop()!r} would be measured in every mode; delete it first")
        return bool(mine)

    def close(self) -> None:
        """Close the connections; the mesh goes on."""
        self._control.close()
        self._fabric.close()

    def switch(self, turn: Turn) -> Switched:
        """Change the namespace's mode and wait until every pod and proxy is there.

        Always by way of no mesh at all, so that what is reported is the price of entering the mode, and
        not that of leaving its neighbour.
        """
        self._leave()
        began = time.monotonic()
        restarts = 0
        if turn.mode != "none":
            restarts = int(self._enroll(turn.mode.partition("+")[0], turn.engine).get("restarts", 0))
        if turn.mode == "ambient+waypoint":
            self._apply_waypoint()
        seconds = time.monotonic() - began if turn.mode != "none" else 0.0
        self._fabric.call("wait_ready")
        return Switched(seconds, restarts)

    def _leave(self) -> None:
        if self._waypoint:
            self._control.call("waypoint_delete", namespace=self._scenario.namespace, name=WAYPOINT)
            self._waypoint = False
        self._enroll("none", "ambient")
        self._fabric.call("wait_ready")

    def _enroll(self, mode: str, engine: str) -> Mapping[str, Any]:
        namespace = self._scenario.namespace
        target = {"kind": "namespace", "namespace": namespace, "name": namespace}
        # Reset: a connection that stays outside (or inside) the mesh would be measured under the wrong mode.
        how = {"existing": "reset", "dry_run": False, "wait": True, "timeout": SWITCH_SECONDS}
        result: Mapping[str, Any] = self._control.call(
            "enroll", targets=[target], mode=mode, engine=engine, **how
        )
        if result.get("failed"):
            reasons = [str(pod.get("reason")) for pod in result.get("pods", []) if pod.get("reason")]
            raise AmbientError(f"cannot switch to {mode}: {(reasons or ['no reason given'])[0]}")
        return result

    def _apply_waypoint(self) -> None:
        how = {"traffic": "service", "enroll_namespace": True, "engine": "ambient", "wait": True}
        self._control.call("waypoint_apply", namespace=self._scenario.namespace, name=WAYPOINT, **how)
        self._waypoint = True

    def proxies(self) -> Sequence[Proxy]:
        """Every proxy that runs now."""
        return proxies_among(self._fabric.call("status")["processes"])

    def load(self, arguments: Sequence[str]) -> ChildTalker:
        """Start the generator in the client's pod."""
        program = self._python("ambient.bench.load", "--target", self._scenario.url, *arguments)
        return self._enter(self._client_pid(), program)

    def capture(self, marker: str) -> ChildTalker | None:
        """Start the capture in the outer network, on every node's link."""
        if self.status.get("fabric") != "netns":
            return None
        links = ",".join(self._links())
        return self._enter(0, self._python("ambient.bench.capture", "--links", links, "--marker", marker))

    def _links(self) -> list[str]:
        pid = int((self.status.get("outer") or {}).get("pid") or self._init)
        text = Path(f"/proc/{pid}/net/dev").read_text()
        return sorted(link_bytes(text, _NODE_LINK.findall(text)))

    def _client_pid(self) -> int:
        pods = self._control.call("get", kind="Pod", namespace=self._scenario.namespace, name=None)
        # By name: a restart for the sidecars gives it another PID.
        found = next((pod for pod in pods if pod["metadata"]["name"] == self._scenario.pod), None)
        pid = int((found or {}).get("status", {}).get("ambient", {}).get("pid") or 0)
        if not pid:
            raise AmbientError(f"pod {self._scenario.pod!r} does not run; see: ambient get pods -A")
        return pid

    def _python(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", module, *arguments]

    def _enter(self, pod: int, argv: Sequence[str]) -> ChildTalker:
        return ChildTalker(enter.command(self._init, pod, argv), boot.daemon_environment(os.environ))
