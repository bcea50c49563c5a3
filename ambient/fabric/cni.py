"""Attaching pods by real CNI plugins, called as the specification says: by exec, in the node's namespace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import trio

from ambient.engine.netns import in_netns
from ambient.errors import AmbientError, ConfigError
from ambient.fabric import cni_plan
from ambient.fabric.cni_plan import AMBIENT, BUILTIN, DIRECTORIES, IPAM, Config
from ambient.fabric.daemons import note
from ambient.fabric.nodes import Node, cni_path
from ambient.fabric.podsource import PodOrder

# The reference plugins take 9 to 17 ms; ambient-cni waits for a capture, and has a deadline of its own below.
PLUGIN_SECONDS = 60.0
# Plugins written in Go look for themselves in /proc, and ours is not that of the mesh's process numbers.
OWN_PROC = ("unshare", "--mount", "--mount-proc")
# Plugins of different pods may run at once (specification, section 2); not all of a thousand. Picked.
AT_ONCE = 4


def find(plugin: str, directories: Iterable[str] = DIRECTORIES) -> str:
    """The path of a plugin, "" if it is in none of *directories*."""
    paths = (f"{directory}/{plugin}" for directory in directories)
    return next((path for path in paths if os.access(path, os.X_OK)), "")


def require(kind: str, directories: Iterable[str] = DIRECTORIES) -> None:
    """Make sure that pods can be attached by *kind*.

    Raises:
        AmbientError: a plugin is missing.
    """
    if kind == BUILTIN:
        return
    if kind not in cni_plan.KINDS:
        raise ConfigError(f"no --cni {kind!r}: {', '.join((*cni_plan.KINDS, BUILTIN))}")
    if shutil.which("unshare") is None:
        raise AmbientError(
            f"--cni {kind} needs the program unshare: apt install util-linux, or --cni builtin"
        )
    looked = tuple(directories)
    missing = [plugin for plugin in (kind, IPAM) if not find(plugin, looked)]
    if missing:
        raise AmbientError(
            f"--cni {kind} needs the CNI plugin {' and '.join(missing)}, not found in {', '.join(looked)}: "
            "apt install containernetworking-plugins, or --cni builtin"
        )


@dataclass(slots=True)
class Plugins:
    """The plugins of one mesh.

    Args:
        kind: ``"bridge"``, ``"ptp"`` or ``"macvlan"``.
    """

    kind: str
    run_dir: str
    directories: tuple[str, ...] = DIRECTORIES
    _results: dict[str, Config] = field(default_factory=dict)
    _turns: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(AT_ONCE))

    @property
    def bypasses_node(self) -> bool:
        """Whether a pod's traffic never passes its node's IP stack."""
        return self.kind == "macvlan"

    async def add(
        self, node: Node, order: PodOrder, netns: str, announce: Callable[[], Awaitable[object]]
    ) -> None:
        """Attach a pod; what a failed try left is taken away again.

        Args:
            announce: Tells control where the pod is, when it has its links: ambient-cni waits for what
                control makes of that.

        Raises:
            AmbientError: a plugin says why it cannot.
        """
        result: Config | None = None
        try:
            for config in self._chain(node, order):
                if config["type"] == AMBIENT:
                    await announce()
                result = await self._call("ADD", node, order, netns, config, result)
            self._results[order.uid] = result or {}
        except BaseException:
            with trio.CancelScope(shield=True):
                await self.delete(node, order, netns)
            raise

    async def check(self, node: Node, order: PodOrder, netns: str) -> None:
        """Ask every plugin whether the pod is still attached as it was.

        Raises:
            AmbientError: one says no.
        """
        for config in self._chain(node, order):
            await self._call("CHECK", node, order, netns, config, self._results.get(order.uid))

    async def delete(self, node: Node, order: PodOrder, netns: str) -> None:
        """Detach a pod, as far as it goes: the rest ends with its namespace."""
        result = self._results.pop(order.uid, None)
        for config in reversed(self._chain(node, order)):
            try:
                await self._call("DEL", node, order, netns, config, result)
            except (AmbientError, OSError) as exc:
                note(f"pod {order.full_name}: {exc}")

    def _chain(self, node: Node, order: PodOrder) -> tuple[Config, ...]:
        captured = cni_plan.waits_for_capture(order.role, order.mode)
        return cni_plan.chain(
            self.kind,
            node.plan,
            data_dir=f"{self.run_dir}/cni",
            socket=cni_path(self.run_dir, node.name) if captured else "",
            ipv6=os.path.isdir("/proc/sys/net/ipv6"),
        )

    async def _call(
        self, command: str, node: Node, order: PodOrder, netns: str, config: Config, previous: Config | None
    ) -> Config:
        body = cni_plan.request(
            config, cni_plan.network_name(node.plan), addresses=order.addresses, previous=previous
        )
        environment = cni_plan.environment(
            command,
            container=cni_plan.container_id(order.uid),
            netns=netns,
            arguments={"K8S_POD_NAMESPACE": order.namespace, "K8S_POD_NAME": order.name},
            path=self.directories,
        )
        # Not abandoned when cancelled: a plugin that was started is waited for.
        return await trio.to_thread.run_sync(
            self._run, node.netns, config["type"], environment, body, limiter=self._turns
        )

    def _run(self, netns: int | None, plugin: str, environment: dict[str, str], body: bytes) -> Config:
        argv = OWN_PROC + (
            (sys.executable, "-P", "-m", "ambient.redirect.cni")
            if plugin == AMBIENT
            else (find(plugin, self.directories),)
        )
        what = f"CNI plugin {plugin} {environment['CNI_COMMAND']}"
        try:
            # The child is born where its parent thread is.
            with in_netns(netns):
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env={**os.environ, **environment},
                )
            with process:
                try:
                    output, errors = process.communicate(body, PLUGIN_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise AmbientError(f"{what}: no answer within {PLUGIN_SECONDS:g} s") from None
        except OSError as exc:
            raise AmbientError(f"{what}: cannot be run: {exc}") from exc
        if process.returncode:
            raise AmbientError(f"{what}: {cni_plan.read_error(process.returncode, output, errors)}")
        try:
            return cni_plan.read_result(output)
        except ConfigError as exc:
            raise AmbientError(f"{what}: {exc}") from exc
