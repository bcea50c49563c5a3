"""Enrolling and un-enrolling on request: labels are written, pods move, and somebody waits and is told.

Floor 3. What can be enrolled is; what cannot is told, and stays as it was. The moving is
``Cluster.reconcile``'s, which follows labels whoever wrote them; this is the conversation about it, and
the restarts that sidecars need.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeAlias

import trio

from ambient.control.blockers_plan import findings
from ambient.control.capture_plan import Capture, Phase
from ambient.control.cluster import Cluster
from ambient.control.enrollment_plan import Plan, Request, has_failed, is_settled, plan_enrollment
from ambient.control.pods import Pod
from ambient.control.views import is_enrolled, shown_mode
from ambient.engine.rpc import RpcError
from ambient.model.enrollment import Mode
from ambient.wire.admin import ExitCode

Emit: TypeAlias = Callable[[Any], Awaitable[None]]
Key: TypeAlias = tuple[str, str]


@dataclass(slots=True)
class _Progress:
    """What one call has seen so far, by pod."""

    started: float
    modes: Mapping[Key, Mode]
    restarted: set[Key] = field(default_factory=set)
    finished: dict[Key, float] = field(default_factory=dict)
    told: dict[Key, str] = field(default_factory=dict)
    failures: dict[Key, str] = field(default_factory=dict)


class Enroller:
    """Serves ``enroll``; one call at a time, because the way back of one must not cross another."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._lock = trio.Lock()

    async def enroll(self, request: Request, emit: Emit) -> dict[str, Any]:
        """Do *request*; return the Enrollment of interfaces.md.

        Raises:
            RpcError: it cannot be done at all (1), or the time ran out (124).
        """
        async with self._lock:
            plan = plan_enrollment(request, self._cluster.store, self._asked(request))
            if request.dry_run:
                return await self._forecast(request, plan)
            return await self._carry_out(request, plan, emit)

    def _asked(self, request: Request) -> tuple[Pod, ...]:
        """The pods that *request* may be about."""
        if not all(each.name for each in request.targets):
            return self._cluster.pods()
        keys = dict.fromkeys((each.namespace, each.name) for each in request.targets)
        return tuple(pod for key in keys if (pod := self._cluster.pod(*key)) is not None)

    async def _carry_out(self, request: Request, plan: Plan, emit: Emit) -> dict[str, Any]:
        progress = _Progress(trio.current_time(), {pod.key: mode for pod, mode in plan.moves})
        undo = _Undo(self._cluster, plan)
        restarts = self._write(request, plan, progress)
        if request.wait:
            with trio.move_on_after(request.timeout) as scope:
                await self._follow(restarts, progress, emit)
            if scope.cancelled_caught:
                raise RpcError(ExitCode.TIMED_OUT, self._still(progress, request.timeout))
            if progress.failures:
                await self._back(undo, progress, request.timeout)
        return self._result(request, plan, progress)

    def _write(self, request: Request, plan: Plan, progress: _Progress) -> list[list[Pod]]:
        """Write everything at once; return the pods to restart, grouped so that a group goes one by one."""
        cluster = self._cluster
        for pod, mode in plan.moves:
            pod.existing = request.existing
            if mode is Mode.SIDECAR:
                cluster.engines[pod.namespace] = request.engine
            if pod.capture.phase is Phase.FAILED:
                pod.capture = Capture()  # Asked again, tried again.
        again = sorted((pod for pod, _ in plan.moves if pod.uid in plan.restarts), key=lambda p: p.key)
        groups = [list(group) for _, group in groupby(again, key=lambda p: (p.namespace, p.owner))]
        for group in groups:
            progress.restarted.update(pod.key for pod in group)
            # Ending before the labels change: its successor is the one that follows them.
            group[0].ending = True
        write_labels(cluster, plan.namespace_labels, plan.pod_labels, (pod.uid for pod, _ in plan.moves))
        return groups

    async def _follow(self, groups: Iterable[list[Pod]], progress: _Progress, emit: Emit) -> None:
        async with trio.open_nursery() as nursery:
            for group in groups:
                nursery.start_soon(self._restart_one_by_one, group)
            while True:
                ring = self._cluster.bell.next()
                if self._look(progress):
                    break
                await self._tell(progress, emit)
                await ring.wait()
        await self._tell(progress, emit)
        # Not done before every daemon has applied it; the caller's deadline is the only one.
        late = await self._cluster.distribution.settled(self._cluster.registry().version, math.inf)
        if late:
            why = f"{late[0]} does not answer, see: ambient status"
            raise RpcError(ExitCode.TIMED_OUT, f"not everybody has heard of it: {why}")

    async def _restart_one_by_one(self, group: list[Pod]) -> None:
        for pod in group:
            if not pod.ending:
                self._cluster.restart(pod)
            await self._cluster.bell.until(lambda old=pod: self._is_replaced(old))  # type: ignore[misc]

    def _is_replaced(self, old: Pod) -> bool:
        now = self._cluster.pod(*old.key)
        return now is not None and now is not old and now.ready

    def _look(self, progress: _Progress) -> bool:
        """Note who has arrived; return whether everybody has."""
        for key, mode in progress.modes.items():
            pod = self._cluster.pod(*key)
            arrived = is_settled(pod, mode) and (key not in progress.restarted or (pod and pod.ready))
            if not arrived:
                progress.finished.pop(key, None)
            elif key not in progress.finished:
                progress.finished[key] = trio.current_time()
            if arrived and pod and has_failed(pod):
                progress.failures[key] = pod.capture.reason
        return len(progress.finished) == len(progress.modes)

    async def _tell(self, progress: _Progress, emit: Emit) -> None:
        for namespace, name in progress.modes:
            pod = self._cluster.pod(namespace, name)
            state = _state(pod)
            if progress.told.get((namespace, name)) != state:
                progress.told[namespace, name] = state
                await emit({"namespace": namespace, "pod": name, "state": state})

    async def _back(self, undo: _Undo, progress: _Progress, timeout: float) -> None:
        """Some pods could not be captured: they stay as they were, and those that could stay enrolled."""
        undo.run(set(progress.failures), progress.modes)
        with trio.move_on_after(timeout):
            await self._cluster.bell.until(lambda: all(map(self._rests, progress.modes)))
            await self._cluster.distribution.settled(self._cluster.registry().version)

    def _rests(self, key: Key) -> bool:
        pod = self._cluster.pod(*key)
        return pod is None or (pod.capture.resting and not pod.ending)

    def _still(self, progress: _Progress, timeout: float) -> str:
        late = [key for key in progress.modes if key not in progress.finished]
        names = ", ".join(f"{name} ({_state(self._cluster.pod(space, name))})" for space, name in late[:3])
        more = f" and {len(late) - 3} more" if len(late) > 3 else ""
        distribution = self._cluster.distribution
        slow = ", ".join(map(str, distribution.laggards(self._cluster.registry().version)))
        where = f"{names}{more}" if names else f"waiting for {slow or 'nobody'}"
        return f"not done within {timeout:g} s: {where}{self._away(late)}; it goes on, see: ambient get pods"

    def _away(self, late: Iterable[Key]) -> str:
        """Nodes of late pods whose agent is not there: nothing can happen on them."""
        pods = [pod for key in late if (pod := self._cluster.pod(*key)) is not None]
        there = {link.peer.node for link in self._cluster.distribution.links() if link.peer.role == "agent"}
        away = sorted({pod.node for pod in pods} - there)
        return f"; no agent on {', '.join(away)}, see: ambient logs agent/{away[0]}" if away else ""

    async def _forecast(self, request: Request, plan: Plan) -> dict[str, Any]:
        """What would be done, and what is in its way; nothing is changed."""
        asked = [pod for pod, mode in plan.moves if mode is Mode.AMBIENT]
        surveys = await self._cluster.agents.survey(asked)
        pods = [_would_be(request, plan, pod, mode) for pod, mode in plan.moves]
        for line, (pod, mode) in zip(pods, plan.moves, strict=True):
            if mode is Mode.AMBIENT:
                line |= _consequences(self._cluster, request.existing, pod, surveys.get(pod.uid))
        return {
            "mode": request.mode.value,
            "existing": request.existing,
            "dry_run": True,
            "pods": pods,
            "restarts": len(plan.restarts),
            "failed": 0,
            "blocked": sum(1 for line in pods if any(each["blocks"] for each in line.get("findings", ()))),
            "skipped": dict(plan.skipped),
        }

    def _result(self, request: Request, plan: Plan, progress: _Progress) -> dict[str, Any]:
        pods = [self._pod_result(key, request.mode, progress) for key in progress.modes]
        skipped = [pod for pod in self._cluster.pods() if pod.uid in plan.skipped] if plan.skipped else []
        pods += [_line(pod, enrolled=False, reason=plan.skipped[pod.uid]) for pod in skipped]
        return {
            "mode": request.mode.value,
            "existing": request.existing,
            "pods": pods,
            "restarts": len(progress.restarted),
            "failed": len(progress.failures),
        }

    def _pod_result(self, key: Key, asked: Mode, progress: _Progress) -> dict[str, Any]:
        pod = self._cluster.pod(*key)
        if pod is None:
            return {"namespace": key[0], "name": key[1], "node": "", "enrolled": False, "reason": "deleted"}
        reason = progress.failures.get(key) or _otherwise(asked, progress.modes[key])
        spent = (progress.finished.get(key, progress.started) - progress.started) * 1000
        line = _line(pod, enrolled=is_enrolled(pod), reason=reason)
        kept = pod.capture.kept if pod.capture.kept >= 0 else None
        line |= {"restarts": int(key in progress.restarted), "duration_ms": round(spent, 1)}
        line["established_connections_kept"] = 0 if key in progress.restarted else kept
        line["established_connections_reset"] = pod.capture.reset
        line["established_connections"] = list(pod.capture.existing)
        line["mode"] = shown_mode(self._cluster, pod).value
        return line


class _Undo:
    """The labels as they were before a call."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self._cluster = cluster
        self._spaces = {
            name: _before(cluster.store.labels_of_namespace(name), labels)
            for name, labels in plan.namespace_labels.items()
        }
        self._pods = {key: dict(cluster.pod_labels.get(key, {})) for key in plan.pod_labels}

    def run(self, failed: set[Key], asked: Iterable[Key]) -> None:
        """Write them again: of *failed* pods, and of namespaces of which all that were *asked* failed."""
        mine = {key: labels for key, labels in self._pods.items() if key in failed}
        worked = {space for space, name in asked if (space, name) not in failed}
        spaces = {name: labels for name, labels in self._spaces.items() if name not in worked}
        self._cluster.pod_labels.update(mine)
        write_labels(self._cluster, spaces, {key: {} for key in mine})


def guest_forecast(cluster: Cluster, pod: Pod, survey: Mapping[str, Any], existing: str) -> dict[str, Any]:
    """The line of a dry run for a guest that is no pod yet."""
    would_be = _line(pod, enrolled=False, reason=f"would be {Mode.AMBIENT.value}")
    return {**would_be, **_consequences(cluster, existing, pod, survey)}


def _consequences(
    cluster: Cluster, existing: str, pod: Pod, survey: Mapping[str, Any] | None
) -> dict[str, Any]:
    found = [each.as_dict() for each in findings(pod, cluster.store, survey)]
    # Of an enrolled pod the connections that are open are the mesh's.
    old = survey if survey is not None and not is_enrolled(pod) else {}
    count, kept = old.get("established", 0), existing == "keep"
    return {
        "findings": found,
        "rules": survey.get("rules", "") if survey else "",
        "established_connections": list(old.get("connections", ())),
        "established_connections_kept": count if kept else 0,
        "established_connections_reset": 0 if kept else count,
    }


def write_labels(
    cluster: Cluster,
    spaces: Mapping[str, Mapping[str, str | None]],
    pods: Mapping[Key, Mapping[str, str | None]],
    moved: Iterable[str] = (),
) -> None:
    """Write labels on namespaces and pods in one step.

    Args:
        moved: Uids of other pods of which something was changed.
    """
    cluster.write_pod_labels(pods)
    if not spaces:
        named = [pod.uid for key in pods if (pod := cluster.pod(*key)) is not None]
        cluster.touched((*named, *moved))
        return
    store = cluster.store
    for name, labels in spaces.items():
        store = store.label(("Namespace", "", name), labels)
    cluster.commit(store)


def _before(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str | None]:
    return {name: labels.get(name) for name in changes}


def _state(pod: Pod | None) -> str:
    if pod is None or pod.ending:
        return "restarting"
    if pod.mode is Mode.SIDECAR:
        return "sidecar" if pod.ready else "starting"
    return pod.capture.phase.value


def _line(pod: Pod, *, enrolled: bool, reason: str) -> dict[str, Any]:
    return {
        "namespace": pod.namespace,
        "name": pod.name,
        "node": pod.node,
        "enrolled": enrolled,
        "restarts": 0,
        "established_connections_kept": None,
        "duration_ms": 0.0,
        "reason": reason,
    }


def _otherwise(asked: Mode, mode: Mode) -> str:
    """Why a pod of a namespace is in another mode than its namespace; "" if it is not."""
    return "" if mode is asked else f"its own label asks for mode {mode.value}, and beats its namespace's"


def _would_be(request: Request, plan: Plan, pod: Pod, mode: Mode) -> dict[str, Any]:
    restart = pod.uid in plan.restarts
    words = f"would be {mode.value}" + (", by a restart" if restart else "")
    if is_settled(pod, mode) and not restart and not has_failed(pod):
        words = _otherwise(request.mode, mode) or f"is {mode.value} already"
    line = _line(pod, enrolled=is_enrolled(pod), reason=words)
    return {**line, "restarts": int(restart)}
