"""How long one pod waits while many are enrolled: commands for single pods at a steady rate.

The load is open: a command goes out when its time has come, whatever has become of those before it. From
then (so the way to control is counted, too) until a connection from outside is first captured.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import trio

from benchmarks.enrolling.children import Child
from benchmarks.enrolling.fabric import Fabric, Pod

# The rate: what an agent and a control plane have to bear for as long as it lasts.
PODS_PER_SECOND = 50
PATIENCE_SECONDS = 60.0


async def paced(mesh: Fabric, pods: Sequence[Pod], rate: float = PODS_PER_SECOND) -> list[float]:
    """Milliseconds that each of *pods* waited; infinite for one that was never captured."""
    sent: dict[str, float] = {}
    captured: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        watchers = {node: await stack.enter_async_context(_watcher(mesh, node)) for node in mesh.nodes}
        for watcher in watchers.values():
            # Four interpreters that start take both cores for half a second.
            await watcher.ready()
        with trio.move_on_after(len(pods) / rate + PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, mesh, pods, rate, watchers, sent)
                for node, watcher in watchers.items():
                    number = sum(1 for pod in pods if pod.node == node)
                    nursery.start_soon(_collect, watcher, number, captured)
    never = float("inf")
    return [(captured.get(pod.addresses[0], never) - sent.get(pod.addresses[0], 0.0)) * 1000 for pod in pods]


def _watcher(mesh: Fabric, node: str) -> Child:
    observer = mesh.pod(f"observer-{node}").netns
    return Child("benchmarks.enrolling.watcher", str(observer), fds=[observer])


async def _send(
    mesh: Fabric, pods: Sequence[Pod], rate: float, watchers: Mapping[str, Child], sent: dict[str, float]
) -> None:
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number, pod in enumerate(pods):
            await trio.sleep_until(started + number / rate)
            await watchers[pod.node].say(f"{pod.addresses[0]} /proc/{os.getpid()}/fd/{pod.netns}")
            sent[pod.addresses[0]] = time.monotonic()
            nursery.start_soon(_enroll, mesh, pod)


async def _enroll(mesh: Fabric, pod: Pod) -> Any:
    target = {"kind": "pod", "namespace": pod.namespace, "name": pod.name}
    return await mesh.call("enroll", targets=[target], wait=False)


async def _collect(watcher: Child, number: int, captured: dict[str, float]) -> None:
    for _ in range(number):
        address, moment = json.loads(await watcher.read_line())
        captured[address] = moment
