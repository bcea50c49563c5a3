"""How fast many pods are enrolled: one row of the result.

Four questions: what the rules alone cost (``rules_ms``), how long one pod waits when there is nothing else to
do (``alone_ms``) and while fifty a second come (``enroll_ms``), and how many a command with a whole namespace
takes a second, and what its pods wait then (``burst_ms``: from the command until control has heard that the
pod is captured; the last one waits for all). All but the first go through control, agents and ztunnels.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

from ambient.model.addressing import FIRST_POD_INDEX, LAST_POD_INDEX
from ambient.redirect import backend
from ambient.redirect.plan import Capture
from benchmarks.enrolling.children import Child
from benchmarks.enrolling.fabric import Fabric, Pod, Wire, fabric
from benchmarks.enrolling.leaks import holdings, leaked
from benchmarks.enrolling.paced import PODS_PER_SECOND, paced
from benchmarks.enrolling.probe import is_captured
from benchmarks.enrolling.statistics import quantiles
from benchmarks.enrolling.wires import BRIDGED

NAMESPACE = "many"
# Not the product's own entry: that drops the capability to open a namespace by our descriptor of it.
AGENT = ("-m", "benchmarks.enrolling.agent", "ambient", "drain")
# As a Deployment would have; each has a service account, so a certificate, of its own.
REPLICAS = 25
# Pods that get rules alone, and pods that are enrolled one at a time.
RULES_ALONE, SINGLY = 100, 20
# For everything of one command; the target for a thousand is 20.
PATIENCE_SECONDS = 180.0
# The observer of each node needs an address, too.
PODS_PER_NODE = LAST_POD_INDEX - FIRST_POD_INDEX


async def run_scale(run_dir: Path, *, pods: int, cni: str, wire: Wire) -> dict[str, Any]:
    """Measure with *pods* pods in the present (fresh) namespaces; return the row."""
    nodes = math.ceil(pods / PODS_PER_NODE)
    async with fabric(run_dir, nodes=nodes, agent=AGENT, wire=wire, bridged=cni in BRIDGED) as mesh:
        started = time.monotonic()
        await mesh.apply(*_manifests(pods, nodes), pods=pods + nodes)
        _say(f"{pods} pods on {nodes} nodes, made in {time.monotonic() - started:.1f} s")
        many = [pod for pod in mesh.pods.values() if pod.namespace == NAMESPACE]
        row: dict[str, Any] = {"rules": "ambient", "cni": cni, "pods": len(many), "nodes": nodes}
        row["rules_ms"] = quantiles([_rules_alone(pod) for pod in many[:RULES_ALONE]])
        await _settle(mesh, many)
        before = holdings(_pids(mesh), [pod.netns for pod in many])
        row["alone_ms"] = quantiles(await _singly(mesh, many[:SINGLY]))
        row |= {"enroll_ms": quantiles(await _paced(mesh, many)), "paced_per_second": PODS_PER_SECOND}
        # What was released is let go of in its own time, and that is no part of what comes next.
        await _left(mesh, many, before)
        row |= await _together(mesh, many)
        row["release_seconds"] = round((await _enroll(mesh, "none"))[0], 2)
        row["leaked"] = sum((await _left(mesh, many, before)).values())
        return row


async def _settle(mesh: Fabric, pods: Sequence[Pod]) -> None:
    """A connection on each node: what daemons open once and keep is not a leak."""
    await _singly(mesh, list({pod.node: pod for pod in pods}.values()))
    await trio.sleep(1.0)


def _rules_alone(pod: Pod) -> float:
    """Milliseconds for the rules and routes of a pod that has none; none are left."""
    started = time.monotonic()
    backend.install(pod.netns, Capture())
    spent = time.monotonic() - started
    backend.remove(pod.netns)
    return spent * 1000


async def _paced(mesh: Fabric, pods: Sequence[Pod]) -> list[float]:
    """Milliseconds for each pod while so many a second come."""
    before = mesh.cpu_seconds()
    waited = await paced(mesh, pods)
    _say(f"{len(pods)} pods enrolled at {PODS_PER_SECOND} a second; CPU {_since(mesh, before)}")
    targets = [_target(pod) for pod in pods]
    await mesh.desk.call("enroll", targets=targets, mode="none", timeout=PATIENCE_SECONDS)
    return waited


async def _singly(mesh: Fabric, pods: Sequence[Pod]) -> list[float]:
    """Milliseconds from the command for one pod to the first captured connection, pod after pod."""
    waited = []
    async with AsyncExitStack() as stack:
        probes = {}
        for node in {pod.node for pod in pods}:
            observer = mesh.pod(f"observer-{node}").netns
            child = Child("benchmarks.enrolling.probe", str(observer), fds=[observer])
            probes[node] = await stack.enter_async_context(child)
            await child.ready()
        for pod in pods:
            waited.append(await _one(mesh, pod, probes[pod.node]))
        _say(f"{len(pods)} pods enrolled one after the other")
        targets = [_target(pod) for pod in pods]
        await mesh.call("enroll", targets=targets, mode="none", timeout=PATIENCE_SECONDS)
    return waited


async def _one(mesh: Fabric, pod: Pod, probe: Child) -> float:
    started = time.monotonic()
    async with trio.open_nursery() as nursery:
        targets = [_target(pod)]
        nursery.start_soon(lambda: mesh.call("enroll", targets=targets, timeout=PATIENCE_SECONDS))
        seen: float = await probe.ask(f"watch {pod.addresses[0]}")
    return (seen - started) * 1000 if seen else math.inf


async def _together(mesh: Fabric, pods: Sequence[Pod]) -> dict[str, Any]:
    before = mesh.cpu_seconds()
    spent, outcome = await _enroll(mesh, "ambient")
    used = _since(mesh, before)
    _say(f"{len(pods)} pods enrolled by one command in {spent:.1f} s; CPU {used}")
    captured = sum(is_captured(mesh.pod(f"observer-{pod.node}").netns, pod.addresses[0]) for pod in pods)
    return {
        "captured": captured,
        "burst_ms": quantiles([each["duration_ms"] for each in outcome["pods"]]),
        "batch_cpu_seconds": used,
        "batch_seconds": round(spent, 2),
        "pods_per_second": round(len(pods) / spent, 1),
    }


async def _enroll(mesh: Fabric, mode: str) -> tuple[float, Any]:
    """Seconds for the whole namespace, and what the command answered."""
    started = time.monotonic()
    targets = [{"kind": "namespace", "name": NAMESPACE}]
    with trio.fail_after(PATIENCE_SECONDS):
        outcome = await mesh.desk.call("enroll", targets=targets, mode=mode, timeout=PATIENCE_SECONDS)
    return time.monotonic() - started, outcome


def _since(mesh: Fabric, before: dict[str, float]) -> dict[str, float]:
    """CPU seconds by role."""
    return {role: round(now - before[role], 2) for role, now in mesh.cpu_seconds().items()}


async def _left(mesh: Fabric, pods: Sequence[Pod], before: Any) -> dict[str, int]:
    """What has not gone when everything had time to go."""
    left: dict[str, int] = {}
    with trio.move_on_after(PATIENCE_SECONDS):
        while left := leaked(before, holdings(_pids(mesh), [pod.netns for pod in pods])):  # noqa: ASYNC110
            await trio.sleep(1.0)
    return left


def _pids(mesh: Fabric) -> list[int]:
    return [process.pid for process in mesh.daemons.values()]


def _target(pod: Pod) -> dict[str, str]:
    return {"kind": "pod", "namespace": pod.namespace, "name": pod.name}


def _manifests(pods: int, nodes: int) -> list[dict[str, Any]]:
    spaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": each}} for each in (NAMESPACE, "other")
    ]
    sizes = [min(REPLICAS, pods - first) for first in range(0, pods, REPLICAS)]
    observers = [_pod(f"observer-node-{number}", f"node-{number}") for number in range(1, nodes + 1)]
    return [*spaces, *observers, *(_deployment(f"app-{n}", size) for n, size in enumerate(sizes))]


def _pod(name: str, node: str) -> dict[str, Any]:
    spec = {"nodeName": node, "containers": [{"name": "app", "image": "none"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "other"}, "spec": spec}


def _deployment(name: str, replicas: int) -> dict[str, Any]:
    containers = [{"name": "app", "image": "none"}]
    template = {
        "metadata": {"labels": {"app": name}},
        "spec": {"serviceAccountName": name, "containers": containers},
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template},
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)
