"""Cycles of enrollment and its end under traffic: one row of the result.

Three pods of a namespace that goes in and out, on two nodes, and one that never does. New connections run in
every direction between them and to and from the outsider, IPv4 and IPv6; 32 long ones are older than every
rule, and 32 more are opened through the proxies and kept over the ends of enrollments, until a fresh 32
take their place.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from benchmarks.enrolling.children import Child
from benchmarks.enrolling.fabric import DEADLINE, Fabric, Wire, fabric
from benchmarks.enrolling.flows import STALL_SECONDS, STARVED_STALL_SECONDS
from benchmarks.enrolling.leaks import holdings, leaked
from benchmarks.enrolling.starvation import starved
from benchmarks.enrolling.statistics import quantiles
from benchmarks.enrolling.wires import BRIDGED

NAMESPACE = "shop"
PODS = {"web": "node-1", "cart": "node-1", "api": "node-2"}
OUTSIDERS = {"outside": "node-2", "observer": "node-1"}
# (from, to): across nodes both ways, on one node, and with somebody outside of the mesh both ways.
DIRECTIONS = (("web", "api"), ("api", "web"), ("web", "cart"), ("outside", "web"), ("cart", "outside"))
# The figure, of each kind.
LONG = 32
# Through-proxy connections live for this many cycles, then the same number go without: so that both the
# draining and the complete end of an enrollment are met.
KEPT_CYCLES = 5
# Between two steps of a cycle, so that there is traffic in every state. Picked.
DWELL_SECONDS = 0.05


# Deadlines of ztunnel that are there for peers on other machines: what is asked of a starved machine is
# whether the order of things loses anything, not whether ten seconds are enough for it.
STARVED_LIMITS = {
    f"AMBIENT_{name}_TIMEOUT": f"{STARVED_STALL_SECONDS:g}s"
    for name in ("TLS_HANDSHAKE", "CONNECT", "DIAL", "FIRST_CONNECT", "PING")
} | {"USER_TIMEOUT_ENABLED": "false"}
# As our daemons write it: "no answer to CONNECT within 10 s", "no sign of life for 15 s".
_DEADLINE = re.compile(r"no [^:\"\n]*? (?:within|for) \d+ s|did not answer within \d+ s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What one row measures.

    Attributes:
        rules: ``ambient`` or ``istio-published``.
        unenroll: ``drain`` or ``delete``: the order of removal.
        starve: Processes that burn CPU meanwhile, and take it from the mesh and from the generator.
    """

    rules: str
    unenroll: str
    cni: str
    cycles: int
    starve: int = 0

    @property
    def patience(self) -> float:
        """Seconds after which the generator gives a connection up."""
        return STARVED_STALL_SECONDS if self.starve else STALL_SECONDS


@dataclass(slots=True)
class _Counts:
    enroll_ms: list[float] = field(default_factory=list)
    enrolling_seconds: float = 0.0
    failed: int = 0
    why: Counter[str] = field(default_factory=Counter)
    through: int = 0
    groups: int = 0


async def run_case(run_dir: Path, *, wire: Wire, **what: Any) -> dict[str, Any]:
    """Measure the ``Case`` of *what* in the present (fresh) namespaces; return its row."""
    case = Case(**what)
    agent = ("-m", "benchmarks.enrolling.agent", case.rules, case.unenroll)
    settings = STARVED_LIMITS if case.starve else {}
    async with fabric(
        run_dir, nodes=2, agent=agent, wire=wire, bridged=case.cni in BRIDGED, settings=settings
    ) as mesh:
        await mesh.apply(*_manifests(), pods=len(PODS) + len(OUTSIDERS))
        observer = mesh.pod("observer").netns
        netnses = [pod.netns for pod in mesh.pods.values()]
        async with (
            Child("benchmarks.enrolling.traffic", fds=netnses, patience=3 * case.patience) as traffic,
            Child(
                "benchmarks.enrolling.probe",
                str(observer),
                str(case.patience),
                fds=[observer],
                patience=3 * case.patience,
            ) as probe,
        ):
            await traffic.say(json.dumps({**_scene(mesh), "patience": case.patience}))
            return await _measure(mesh, case, traffic, probe)


async def _measure(mesh: Fabric, case: Case, traffic: Child, probe: Child) -> dict[str, Any]:
    await probe.ready()
    await traffic.ask(f"open before {LONG}")
    await _settle(mesh, probe)
    before = _holdings(mesh)
    await traffic.ask("start")
    counts = _Counts()
    with starved(case.starve):
        for cycle in range(case.cycles):
            await _cycle(mesh, counts, traffic, probe, cycle)
            if sys.stderr.isatty() or cycle % 10 == 9:
                print(f"{case.rules} {case.unenroll}: cycle {cycle + 1} of {case.cycles}", file=sys.stderr)
    await traffic.ask("stop")
    if counts.through % (2 * KEPT_CYCLES):
        await traffic.ask(f"close through{counts.groups}")
    said = await traffic.ask("look")
    if said["cut"]["before"] < LONG:
        said = await traffic.ask("close before")
    left = await _left(mesh, before)
    return _row(case, counts, said, left, deadlines_run_out(mesh.run_dir))


async def _cycle(mesh: Fabric, counts: _Counts, traffic: Child, probe: Child, cycle: int) -> None:
    await _enroll(mesh, counts, probe)
    if cycle % (2 * KEPT_CYCLES) == 0:
        counts.groups += 1
        await traffic.ask(f"open through{counts.groups} {LONG}")
    await trio.sleep(DWELL_SECONDS)
    if cycle % (2 * KEPT_CYCLES) == KEPT_CYCLES:
        await traffic.ask(f"close through{counts.groups}")
    counts.through = cycle % (2 * KEPT_CYCLES) < KEPT_CYCLES
    result = await mesh.call("enroll", targets=[_TARGET], mode="none", timeout=DEADLINE * 10)
    counts.failed += result["failed"]
    await trio.sleep(DWELL_SECONDS)


_TARGET = {"kind": "namespace", "name": NAMESPACE}


async def _enroll(mesh: Fabric, counts: _Counts, probe: Child) -> None:
    started = time.monotonic()
    async with trio.open_nursery() as nursery:

        async def captured() -> None:
            seen = await probe.ask(f"watch {mesh.pod('web').addresses[0]}")
            counts.enroll_ms.append((seen - started) * 1000 if seen else float("inf"))

        nursery.start_soon(captured)
        result = await mesh.call("enroll", targets=[_TARGET], mode="ambient", timeout=DEADLINE * 10)
        counts.enrolling_seconds += time.monotonic() - started
        counts.failed += result["failed"]
        counts.why.update(each["reason"] for each in result["pods"] if not each["enrolled"])


def deadlines_run_out(run_dir: Path) -> Counter[str]:
    """What the daemons waited for in vain, in their own words: nobody was lost there by an enrollment."""
    found: Counter[str] = Counter()
    for log in sorted((run_dir / "logs").iterdir()):
        found.update(_DEADLINE.findall(log.read_text(errors="replace")))
    return found


def _row(
    case: Case, counts: _Counts, said: dict[str, Any], left: dict[str, int], run_out: Counter[str]
) -> dict[str, Any]:
    cut = sum(number for group, number in said["cut"].items() if group != "before")
    return {
        "rules": case.rules,
        "unenroll": case.unenroll,
        "cni": case.cni,
        "cycles": case.cycles,
        "starve": case.starve,
        "new_ok": said["new_ok"],
        "new_failed": said["new_failed"],
        "preexisting_reset": said["cut"]["before"],
        "through_proxy_cut": cut,
        "lost_bytes": said["lost_bytes"],
        "leaked": sum(left.values()),
        "enroll_ms": quantiles(counts.enroll_ms),
        "pods_per_second": round(case.cycles * len(PODS) / counts.enrolling_seconds, 1),
        "through_proxy": counts.groups * LONG,
        "enrollments_failed": counts.failed,
        "why_enrollments_failed": dict(counts.why),
        "what_leaked": left,
        "why_failed": said["reasons"],
        "generator_patience_seconds": case.patience,
        "deadlines_run_out": dict(run_out),
    }


async def _settle(mesh: Fabric, probe: Child) -> None:
    """One enrollment with a connection to each pod: what daemons open once and keep is not a leak."""
    await mesh.call("enroll", targets=[_TARGET], mode="ambient", timeout=DEADLINE)
    for name in PODS:
        await probe.ask(f"watch {mesh.pod(name).addresses[0]}")
    await mesh.call("enroll", targets=[_TARGET], mode="none", timeout=DEADLINE)
    await trio.sleep(1.0)


async def _left(mesh: Fabric, before: Counter[str]) -> dict[str, int]:
    """What has not gone when everything had time to go."""
    left: dict[str, int] = {}
    with trio.move_on_after(DEADLINE):
        while left := leaked(before, _holdings(mesh)):  # noqa: ASYNC110 - the kernel rings no bell.
            await trio.sleep(0.5)
    return left


def _holdings(mesh: Fabric) -> Counter[str]:
    pids = [process.pid for process in mesh.daemons.values()]
    return holdings(pids, [pod.netns for pod in mesh.pods.values()])


def _scene(mesh: Fabric) -> dict[str, Any]:
    flows = [
        (f"{source}>{target} {'IPv6' if ':' in address else 'IPv4'}", mesh.pod(source).netns, address)
        for source, target in DIRECTIONS
        for address in mesh.pod(target).addresses
    ]
    return {"servers": [mesh.pod(name).netns for name in (*PODS, "outside")], "flows": flows}


def _manifests() -> Sequence[dict[str, Any]]:
    spaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in (NAMESPACE, "other")
    ]
    return [*spaces, *_pods(NAMESPACE, PODS), *_pods("other", OUTSIDERS)]


def _pods(namespace: str, placed: dict[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": node, "containers": [{"name": "app", "image": "none"}]},
        }
        for name, node in placed.items()
    ]
