"""Where a pod lives: namespaces of its own, or (loopback fabric) nothing but an address."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import trio

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import open_netns
from ambient.engine.rpc import AdminClient
from ambient.errors import AmbientError
from ambient.fabric import capture, cni_plan, etc_plan, wiring
from ambient.fabric.cni import Plugins
from ambient.fabric.initclient import InitClient
from ambient.fabric.launch import Pause
from ambient.fabric.nodes import Node, cni_path
from ambient.fabric.podsource import PodOrder
from ambient.fabric.wiring_plan import sysctls


class Refused(AmbientError):
    """This fabric cannot run the pod, and waiting will not help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lodging:
    """What a pod was given.

    Attributes:
        pause: PID inside the mesh of the process that holds the namespaces; 0 for none.
        netns: Descriptor of its network namespace; None for none.
        netns_path: The same as a path that every process of the mesh can open, "" for none.
        home: A directory for programs that name none.
        probed_from: Descriptor of the network namespace that probes come from; None in the loopback fabric.
        lost: Returns when the namespaces are gone although nobody was to end them.
    """

    pause: int = 0
    netns: int | None = None
    netns_path: str = ""
    home: str = "/"
    probed_from: int | None = None
    lost: Callable[[], Awaitable[object]] = trio.sleep_forever


class Places(Protocol):
    """A way of giving pods a place."""

    def lodge(self, node: Node, order: PodOrder) -> AbstractAsyncContextManager[Lodging]:
        """Make the pod's place; gone when the block is left."""
        ...


@dataclass(frozen=True, slots=True)
class NamespacePlaces:
    """Namespaces, wired to the pod's node.

    Args:
        rootless: Whether pods live in user namespaces of their own.
        plugins: The CNI plugins that attach pods; None for our own wiring.
        control: Told of a pod's namespace before it runs, since somebody waits for the capture.
    """

    init: InitClient
    run_dir: str
    rootless: bool
    plugins: Plugins | None = None
    control: AdminClient | None = None

    @asynccontextmanager
    async def lodge(self, node: Node, order: PodOrder) -> AsyncIterator[Lodging]:
        """See ``Places``."""
        assert node.netns is not None
        folder = Path(self.run_dir, "pods", order.file_name)
        write_etc(folder / "etc", order)
        shared = order.spec.host_network
        request = Pause(
            hostname=node.name if shared else order.name,
            etc=str(folder / "etc"),
            hidden=self.run_dir,
            sysctls=sysctls(self.rootless),
            netns=shared,
        )
        pause = await self.init.pause(request, [node.netns] if shared else [])
        path = f"/proc/{pause.host_pid}/ns/net"
        # In the /proc that plugins see.
        inside = f"/proc/{pause.pid}/ns/net"
        netns = open_netns(path)
        try:
            if not shared:
                await self._attach(node, order, netns, path, inside)
            # The run directory itself: covered by an empty one there, and writable.
            yield Lodging(
                pause=pause.pid,
                netns=netns,
                netns_path=path,
                home=self.run_dir,
                probed_from=self._prober(node, netns, shared=shared),
                lost=pause.wait,
            )
        finally:
            if self.plugins is not None and not shared:
                with trio.CancelScope(shield=True):
                    await self.plugins.delete(node, order, inside)
            with trio.CancelScope(shield=True):
                await self.init.kill(pause)
            os.close(netns)
            # A mesh that goes down takes its nodes' namespaces, and all links, along.
            if not shared and self.plugins is None and not self.init.hurried:
                with trio.CancelScope(shield=True), suppress(OSError):
                    # The kernel waits some 40 ms: others are served meanwhile.
                    await trio.to_thread.run_sync(wiring.remove_pod, node.netns, order.addresses)
            shutil.rmtree(folder, ignore_errors=True)

    async def _attach(self, node: Node, order: PodOrder, netns: int, path: str, inside: str) -> None:
        assert node.netns is not None

        async def announce() -> None:
            if self.control is not None:
                await self.control.call("pod_status", uid=order.uid, phase="Pending", netns=path)

        if self.plugins is None:
            wiring.add_pod(node.plan, node.netns, netns, order.addresses)
            if self.control is not None and cni_plan.waits_for_capture(order.role, order.mode):
                await announce()
                await capture.wait(cni_path(self.run_dir, node.name), order, netns)
            return
        with NetlinkSocket(netns) as netlink:
            # A container runtime's part, and no plugin's that we chain.
            netlink.set_up("lo")
        await self.plugins.add(node, order, inside, announce)

    def _prober(self, node: Node, netns: int, *, shared: bool) -> int | None:
        """Where probes come from: the pod itself, if its node cannot reach it."""
        bypassed = self.plugins is not None and self.plugins.bypasses_node and not shared
        return netns if bypassed else node.netns


def write_etc(folder: Path, order: PodOrder) -> None:
    """Write what stands in for files of /etc."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    nsswitch = Path("/etc/nsswitch.conf")
    machine = nsswitch.read_text(errors="replace") if nsswitch.is_file() else ""
    for name, text in etc_plan.files(order.name, order.namespace, order.addresses, machine).items():
        (folder / name).write_text(text, encoding="utf-8")


@dataclass(frozen=True, slots=True)
class LoopbackPlaces:
    """An address of 127/8 each, for workloads that listen nowhere else: the built-in ones."""

    @asynccontextmanager
    async def lodge(self, _node: Node, order: PodOrder) -> AsyncIterator[Lodging]:
        """See ``Places``.

        Raises:
            Refused: the pod needs a network of its own.
        """
        if order.role == "waypoint" or order.mode == "sidecar":
            raise Refused("proxies need network namespaces; this mesh runs on fabric loopback")
        for container in order.spec.containers:
            if container.command:
                raise Refused(f"fabric loopback runs built-in workloads only, not {container.command[0]!r}")
        yield Lodging()
