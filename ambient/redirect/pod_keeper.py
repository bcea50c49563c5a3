"""One pod of the node: brought to where control wants it, in the order that loses no connection.

    enroll     namespace and ports checked -> ztunnel listens -> rules, at once -> "enrolled"
    release    rules that capture nothing new -> ztunnel stops listening -> "draining"
               -> ztunnel: the last captured connection ended -> no rules -> "none"

What is refused leaves nothing behind. Where the pod stands is read from its namespace when the agent
starts, so an agent may come and go without anybody noticing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import trio

from ambient.engine.netns import open_netns
from ambient.errors import AmbientError, ConfigError
from ambient.model.identity import DEFAULT_TRUST_DOMAIN, SpiffeId
from ambient.redirect import backend, listing, pod_capture
from ambient.redirect.backend import Standing
from ambient.redirect.backends import Backend
from ambient.redirect.plan import capture_plan, drain_plan
from ambient.wire.nft import Table
from ambient.wire.xds import NodePod, PodReport
from ambient.wire.zds import WorkloadInfo

log = logging.getLogger("agent")


class State(Enum):
    """Where a pod stands; the values go into reports."""

    NONE = "none"
    ENROLLED = "enrolled"
    DRAINING = "draining"
    FAILED = "failed"


class Ztunnel(Protocol):
    """The part of ``ZdsServer`` that a pod needs."""

    def pids(self) -> frozenset[int]:
        """The processes of the node's ztunnels."""
        ...

    async def add(self, workload: WorkloadInfo, netns: int) -> None:
        """Serve; raises ``Unavailable``."""
        ...

    async def delete(self, uid: str) -> None:
        """Stop serving."""
        ...


@dataclass(frozen=True, slots=True)
class Around:
    """What all pods of the node share."""

    ztunnel: Ztunnel
    report: Callable[[PodReport], None]
    rules: Backend = backend


class PodKeeper:
    """Keeps one pod as ``pod`` says.

    Attributes:
        pod: What control said last.
        state: Where it stands.
        reason: Why it failed, if it did.
    """

    def __init__(self, pod: NodePod, around: Around) -> None:
        self.pod = pod
        self.state = State.NONE
        self.reason = ""
        self._around = around
        self._netns: int | None = None
        self._served = False
        self._drained = False
        self._gone = False
        self._asked = True
        self._changed = trio.Event()
        self._changed.set()

    def want(self, pod: NodePod) -> None:
        """Control's newest word."""
        if pod != self.pod:
            self.pod = pod
            self._wake()

    def gone(self) -> None:
        """The pod is no more; ``run`` cleans up and returns."""
        self._gone = True
        self._changed.set()

    def drained(self) -> None:
        """ztunnel's word that no captured connection is left."""
        self._drained = True
        self._changed.set()

    def refused(self, reason: str) -> None:
        """A ztunnel that came anew cannot serve the captured pod: let go of it rather than swallow it."""
        log.error("%s is captured, and ztunnel cannot serve it: %s", self.pod.uid, reason)
        self.state = State.DRAINING
        self._wake()

    def named(self) -> tuple[WorkloadInfo, int] | None:
        """For ztunnel's snapshot: whom to serve and where, if the pod is captured."""
        if self._served and self._netns is not None:
            return self._workload(), self._netns
        return None

    def recall(self) -> None:
        """Read from the kernel where the pod stands; for an agent that has just started."""
        try:
            match self._around.rules.standing(self._open()):
                case Standing.CAPTURED | Standing.DAMAGED:
                    self.state, self._served = State.ENROLLED, True
                case Standing.DRAINING:
                    self.state = State.DRAINING
                case Standing.NONE:
                    self.state = State.NONE
        except (OSError, AmbientError) as exc:
            log.debug("%s: %s", self.pod.uid, exc)

    def should_stand(self) -> Table | None:
        """The rules that its namespace should hold now."""
        if self.state is State.ENROLLED:
            return capture_plan(pod_capture.capture_of(self.pod))
        return drain_plan() if self.state is State.DRAINING else None

    def show(self) -> dict[str, Any]:
        """What should stand in its namespace and what does, as text.

        Raises:
            ConfigError: it has no namespace.
        """
        would = capture_plan(pod_capture.capture_of(self.pod))
        rules = self._around.rules
        should = rules.planned(self.should_stand())
        does = rules.present(self._open(), (would, drain_plan()))
        return {
            "uid": self.pod.uid,
            "state": self.state.value,
            "plan": should or rules.planned(would),
            "kernel": does,
            "diff": listing.difference(should, does),
        }

    async def run(self) -> None:
        """Follow ``want`` until ``gone``. A cancelled one leaves the pod as it stands: agents come and go."""
        try:
            while not self._gone:
                await self._changed.wait()
                self._changed = trio.Event()
                if not self._gone:
                    await self._converge()
            await self._forget()
        finally:
            if self._netns is not None:
                os.close(self._netns)
                self._netns = None

    def _wake(self) -> None:
        self._asked = True
        self._changed.set()

    async def _converge(self) -> None:
        asked, self._asked = self._asked, False
        started = trio.current_time()
        match self.pod.mode == "ambient", self.state:
            case True, State.ENROLLED:
                await self._mend(asked)
            case True, _:
                if asked:
                    await self._enroll(started)
            case False, State.ENROLLED | State.FAILED:
                await self._release(started)
            case False, State.DRAINING if self._drained:
                await self._finish()
            case False, State.DRAINING if asked:
                await self._release(started)
            case False, State.NONE if asked:
                self._report()

    async def _enroll(self, started: float) -> None:
        try:
            kept = await self._capture(self._open())
        except (OSError, AmbientError) as exc:
            reason = str(exc) or type(exc).__name__
            log.error("%s is not enrolled: %s", self.pod.uid, reason)
            self.state, self.reason = State.FAILED, reason
            self._report(reason, started=started)
            return
        self.state, self.reason = State.ENROLLED, ""
        log.info("%s is enrolled; %d established connections kept", self.pod.uid, kept)
        self._report(kept=kept, started=started)

    async def _capture(self, netns: int) -> int:
        """Listeners, then rules; returns the number of connections left alone."""
        pod_capture.check(netns, self._around.ztunnel.pids())
        was = self.state
        try:
            self._drained = False
            await self._around.ztunnel.add(self._workload(), netns)
            # From here on a ztunnel that comes anew is told of it, though the rules are not there yet.
            self._served = True
            return await trio.to_thread.run_sync(pod_capture.install, self._around.rules, netns, self.pod)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._undo(netns, was)
            raise

    async def _undo(self, netns: int, was: State) -> None:
        """Back to where it was: nothing, or draining."""
        self._served = False
        undo = self._around.rules.drain if was is State.DRAINING else self._around.rules.remove
        with suppress(OSError):
            await trio.to_thread.run_sync(undo, netns)
        await self._around.ztunnel.delete(self.pod.uid)

    async def _mend(self, asked: bool) -> None:
        """It is enrolled as it should be; make sure of the rules and say so."""
        try:
            await trio.to_thread.run_sync(
                self._around.rules.install, self._open(), pod_capture.capture_of(self.pod)
            )
        except (OSError, AmbientError) as exc:
            log.error("the rules of %s cannot be mended: %s", self.pod.uid, exc)
        if asked:
            self._report()

    async def _release(self, started: float) -> None:
        try:
            netns = self._open()
            if self._around.rules.standing(netns) is Standing.NONE:
                raise ConfigError("it is not captured")
            await trio.to_thread.run_sync(self._around.rules.drain, netns)
        except (OSError, AmbientError) as exc:
            log.info("%s has nothing to release: %s", self.pod.uid, exc)
            self.state = State.NONE
            self._report(started=started)
            return
        self.state, self._served, self._drained = State.DRAINING, False, False
        await self._around.ztunnel.delete(self.pod.uid)
        if not self._drained:
            self._report(started=started)

    async def _finish(self) -> None:
        if self._netns is not None:
            with suppress(OSError):
                await trio.to_thread.run_sync(self._around.rules.remove, self._netns)
        self.state = State.NONE
        log.info("%s has left the mesh", self.pod.uid)
        self._report()

    async def _forget(self) -> None:
        """ztunnel need not serve it any more; if its namespace lives on, nothing there leads nowhere."""
        if self.state not in (State.ENROLLED, State.DRAINING):
            return
        self._served = False
        await self._around.ztunnel.delete(self.pod.uid)
        if self._netns is not None:
            with suppress(OSError):
                await trio.to_thread.run_sync(self._around.rules.remove, self._netns)

    def _open(self) -> int:
        """The pod's namespace, opened once: its path may come to mean another one.

        Raises:
            ConfigError: there is none, or it is not the pod's own.
        """
        if self._netns is None:
            try:
                self._netns = open_netns(self.pod.netns)
            except OSError as exc:
                raise ConfigError(f"no network namespace {self.pod.netns!r}: {exc.strerror}") from exc
        return self._netns

    def _workload(self) -> WorkloadInfo:
        pod = self.pod
        return WorkloadInfo(
            uid=pod.uid,
            name=pod.name,
            namespace=pod.namespace,
            service_account=pod.service_account,
            identity=SpiffeId(DEFAULT_TRUST_DOMAIN, pod.namespace, pod.service_account),
            dns_capture=pod.dns_capture,
        )

    def _report(self, reason: str = "", *, kept: int = -1, started: float = 0.0) -> None:
        took = trio.current_time() - started if started else 0.0
        self._around.report(
            PodReport(
                pod=self.pod.uid,
                state=self.state.value,
                reason=reason,
                established_kept=kept,
                duration_ms=round(took * 1000, 3),
            )
        )
