"""The supervisor: makes the nodes, keeps the daemons, runs the pods, answers the desk.

A trio program, started by init, in the outer network namespace. It ends in one of two ways: asked to
(``down``, SIGTERM), then everything is stopped in order and it exits 0; or by failing, then init kills
what is left.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from ambient.engine.netns import netns_identity
from ambient.engine.rpc import AdminClient
from ambient.errors import AmbientError
from ambient.fabric import desk, guests_plan, nodes, polling, wiring
from ambient.fabric.cni import Plugins
from ambient.fabric.cni_plan import BUILTIN
from ambient.fabric.daemons import Daemon, Keeper, note
from ambient.fabric.guests import Guests
from ambient.fabric.guests_plan import Identity
from ambient.fabric.initclient import InitClient
from ambient.fabric.nodes import Node
from ambient.fabric.places import LoopbackPlaces, NamespacePlaces, Places
from ambient.fabric.pods import Pods
from ambient.fabric.table import Table
from ambient.fabric.wiring_plan import NodePlan
from ambient.redirect.backends import BACKEND_NAME, choose

# From the start of control to its first answer; it imports and makes a CA in well under a second.
CONTROL_SECONDS = 20.0
# From SIGTERM to SIGKILL of everything in a mesh that goes down; picked, not measured.
HURRY_SECONDS = 1.0
# Names that are the fabric's own business, and not its daemons'.
_PRIVATE_NAMES = (
    "AMBIENT_INIT_FD",
    "AMBIENT_READY_FD",
    "AMBIENT_NODES",
    "AMBIENT_FABRIC",
    "AMBIENT_CNI",
    "AMBIENT_MACHINE_NETNS",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What ``bootstrap`` put into the environment."""

    run_dir: str
    nodes: int
    rootless: bool
    fabric: str
    machine: Identity
    cni: str
    init_fd: int
    ready_fd: int

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read them."""
        return cls(
            run_dir=environment["AMBIENT_RUN_DIR"],
            nodes=int(environment["AMBIENT_NODES"]),
            rootless=environment["AMBIENT_ROOTLESS"] == "1",
            fabric=environment["AMBIENT_FABRIC"],
            cni=environment["AMBIENT_CNI"],
            machine=_identity(environment["AMBIENT_MACHINE_NETNS"]),
            init_fd=int(environment["AMBIENT_INIT_FD"]),
            ready_fd=int(environment["AMBIENT_READY_FD"]),
        )


def _identity(text: str) -> Identity:
    device, _, inode = text.partition(":")
    return int(device), int(inode)


async def supervise(settings: Settings) -> None:
    """Run the mesh until it is to stop.

    Raises:
        AmbientError: it cannot go on.
    """
    init = InitClient(socket.socket(fileno=settings.init_fd))
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(init.serve)
        nursery.start_soon(_stop_on_signal, stop)
        await _with_control(settings, init, stop)
        nursery.cancel_scope.cancel()


async def _stop_on_signal(stop: trio.Event) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()


async def _with_control(settings: Settings, init: InitClient, stop: trio.Event) -> None:
    """Control first and last: everything else is attached to it."""
    table = Table()
    if settings.fabric == "netns":
        wiring.prepare_outer()
    ours, theirs = socket.socketpair()
    with theirs:
        daemon = control_daemon(settings, os.environ)
        entry = table.add(daemon.entry())
        entry.process = await init.start(daemon.launch("AMBIENT_FABRIC_FD"), [theirs.fileno()])
    async with AdminClient.over(ours) as control:
        keeper = Keeper(init, control, table)
        try:
            await _run(settings, keeper, stop)
        finally:
            with trio.CancelScope(shield=True):
                await init.stop(entry.process, HURRY_SECONDS)


def control_daemon(settings: Settings, environment: Mapping[str, str]) -> Daemon:
    """The control plane."""
    return Daemon(
        name="control",
        role="control",
        arguments=("-m", "ambient.control"),
        environment=daemon_environment(environment),
        log=f"{settings.run_dir}/logs/control.log",
    )


def daemon_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The caller's environment, so that the names ztunnel honours reach it, without our own."""
    return {name: value for name, value in environment.items() if name not in _PRIVATE_NAMES}


async def _run(settings: Settings, keeper: Keeper, stop: trio.Event) -> None:
    plans = [NodePlan(number) for number in range(1, settings.nodes + 1)]
    with trio.fail_after(CONTROL_SECONDS):
        await keeper.control.call("nodes", names=[plan.name for plan in plans], fabric=settings.fabric)
    real = settings.fabric == "netns"
    attach = Plugins(settings.cni, settings.run_dir) if settings.cni != BUILTIN else None
    bridged = attach is not None and attach.bypasses_node
    made = {plan.name: Node(plan, wiring.add_node(plan, bridged=bridged) if real else None) for plan in plans}
    base = daemon_environment(os.environ)
    places: Places = LoopbackPlaces()
    if real:
        places = NamespacePlaces(keeper.init, settings.run_dir, settings.rootless, attach, keeper.control)
    pods = Pods(keeper, made, settings.run_dir, base, places)
    guests = _guests(settings, keeper, made, pods)
    try:
        await _serve(settings, keeper, made, pods, guests, stop)
    finally:
        # After the daemons: what they captured of guests would lead nowhere.
        guests.leave()


async def _serve(
    settings: Settings,
    keeper: Keeper,
    made: Mapping[str, Node],
    pods: Pods,
    guests: Guests,
    stop: trio.Event,
) -> None:
    base = daemon_environment(os.environ)
    real = settings.fabric == "netns"
    async with trio.open_nursery() as daemons:
        # XXX: no proxies in the loopback fabric yet; nothing would hand them a connection.
        ztunnels = await nodes.start_daemons(
            daemons,
            keeper,
            {node.name: nodes.daemons(base, settings.run_dir, node) for node in made.values() if real},
        )
        async with trio.open_nursery() as serving:
            answers = desk.Desk(settings.run_dir, made, keeper.table, pods, ztunnels, stop, guests)
            await serving.start(answers.serve)
            serving.start_soon(guests.watch)
            serving.start_soon(pods.follow, keeper.control)
            with trio.fail_after(CONTROL_SECONDS):
                await _until_control_listens(settings.run_dir)
            if not say(settings.ready_fd, {"ready": True}):
                # Who started it gave up, or was interrupted before it could know whom to stop.
                stop.set()
            await stop.wait()
            keeper.init.hurry = HURRY_SECONDS
            # Pods before daemons: a program that says goodbye still finds its network working.
            serving.cancel_scope.cancel()
        daemons.cancel_scope.cancel()


def _guests(settings: Settings, keeper: Keeper, made: Mapping[str, Node], pods: Pods) -> Guests:
    refusal = guests_plan.ROOTLESS if settings.rootless else ""
    if settings.fabric != "netns":
        refusal = guests_plan.LOOPBACK

    def ours() -> dict[Identity, str]:
        nodes = {netns_identity(node.netns): name for name, node in made.items() if node.netns is not None}
        return {**nodes, _own_network(): "the network between the nodes", **pods.namespaces()}

    rules = choose(os.environ.get(BACKEND_NAME, ""))
    return Guests(settings.run_dir, keeper.control, tuple(made), ours, settings.machine, rules, refusal)


def _own_network() -> Identity:
    found = os.stat("/proc/self/ns/net")
    return found.st_dev, found.st_ino


async def _until_control_listens(run_dir: str) -> None:
    async def listens() -> bool:
        return Path(run_dir, "control.sock").is_socket()

    await polling.until(listens)


def say(ready_fd: int, message: dict[str, object]) -> bool:
    """Tell whoever started the mesh how that went, once; return whether anybody listens."""
    try:
        os.write(ready_fd, json.dumps(message).encode() + b"\n")
    except BrokenPipeError:
        return False
    finally:
        os.close(ready_fd)
    return True


def reasons(exc: BaseException) -> list[BaseException]:
    """The leaves of a group of exceptions."""
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for each in exc.exceptions for leaf in reasons(each)]
    return [exc]


def main() -> None:
    """Supervise the mesh that the environment describes."""
    settings = Settings.read(os.environ)
    for fd in (settings.init_fd, settings.ready_fd):
        os.set_inheritable(fd, False)
    try:
        trio.run(supervise, settings)
    except* (AmbientError, OSError, trio.TooSlowError) as group:
        why = "; ".join(str(each) or type(each).__name__ for each in reasons(group))
        note(f"the mesh cannot go on: {why}")
        with suppress(OSError):  # It may have been told "ready" long ago.
            say(settings.ready_fd, {"error": f"{why} (see {settings.run_dir}/logs)"})
        sys.exit(1)


if __name__ == "__main__":
    main()
