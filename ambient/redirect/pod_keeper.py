"""One pod of the node: brought to where control wants it, in the order that loses no connection.

    enroll     namespace and ports checked -> ztunnel listens -> rules, at once -> "enrolled"
    release    rules that capture nothing new -> ztunnel stops listening -> "draining"
               -> ztunnel: the last captured connection ended -> no rules -> "none"

    repair     what attestation found wrong is put right; what cannot be is "lost": not enrolled, tried again
               from time to time, and meanwhile, if policy refuses plaintext, closed to whoever comes

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
from functools import partial
from typing import Any, Protocol

import trio

from ambient.engine.netns import netns_identity, open_netns
from ambient.errors import AmbientError, ConfigError
from ambient.model.identity import DEFAULT_TRUST_DOMAIN, SpiffeId
from ambient.redirect import backend, evidence, listing, pod_capture, sockets
from ambient.redirect.attestation_plan import GiveUp, Namespace, Repair, What
from ambient.redirect.backend import Standing
from ambient.redirect.backends import Backend
from ambient.redirect.plan import Capture, capture_plan, closed_plan, drain_plan
from ambient.redirect.pod_capture import Existing
from ambient.redirect.survey import shown
from ambient.wire.nft import Table
from ambient.wire.xds import NodePod, PodReport
from ambient.wire.zds import WorkloadInfo

log = logging.getLogger("agent")


class State(Enum):
    """Where a pod stands; the values go into reports."""

    NONE = "none"
    ENROLLED = "enrolled"
    LOST = "lost"
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
    # Whether policy lets nobody without an identity into the workload of this uid.
    is_strict: Callable[[str], bool] = lambda uid: False


class PodKeeper:
    """Keeps one pod as ``pod`` says.

    Attributes:
        pod: What control said last.
        state: Where it stands.
        opened: How often it opened a namespace.
        reason: Why it was not enrolled when that was last tried, if it was not.
        existing: Connections older than its capture; attestation takes off those that have ended.
    """

    def __init__(self, pod: NodePod, around: Around) -> None:
        self.pod = pod
        self.state = State.NONE
        self.reason = ""
        self.existing = Existing()
        self._around = around
        self._netns: int | None = None
        self.opened = 0
        self._served = False
        self._drained = False
        self._gone = False
        self._asked = True
        self._busy = False
        # Enrolled by another agent: which connections are older than that is still to be found out.
        self._recalled = False
        self._capture_of_pod = pod_capture.capture_of(pod)
        self._verdict: Repair | GiveUp | None = None
        self._repairs = 0
        self._changed = trio.Event()
        self._changed.set()

    def want(self, pod: NodePod) -> None:
        """Control's newest word."""
        if pod is not self.pod and pod != self.pod:
            self.pod = pod
            self._capture_of_pod = pod_capture.capture_of(pod)
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
        self.judged(GiveUp(reason))

    # What attestation asks, and does (``attestation.Subject``).

    @property
    def attestable(self) -> bool:
        """Whether it is enrolled and nothing is under way."""
        idle = not self._busy and not self._changed.is_set()
        return idle and self.state is State.ENROLLED and self._served and self._netns is not None

    @property
    def wanted(self) -> bool:
        """Whether it is to be enrolled."""
        return self.pod.mode == "ambient"

    @property
    def lost(self) -> bool:
        """Whether it is to be enrolled and could not be kept so."""
        return self.state is State.LOST

    @property
    def netns(self) -> int:
        """The descriptor of its namespace; only while it is attestable."""
        assert self._netns is not None
        return self._netns

    @property
    def path(self) -> str:
        """Where its namespace is found."""
        return self.pod.netns

    @property
    def capture(self) -> Capture:
        """What is captured of it."""
        return self._capture_of_pod

    def judged(self, verdict: Repair | GiveUp) -> None:
        """Put right what is wrong, or admit that it is lost."""
        self._verdict = verdict
        self._changed.set()

    def retry(self) -> None:
        """Try again to enroll a lost pod."""
        if not self._busy:
            self._wake()

    def named(self) -> tuple[WorkloadInfo, int] | None:
        """For ztunnel's snapshot: whom to serve and where, if the pod is captured."""
        if self._served and self._netns is not None:
            return self._workload(), self._netns
        return None

    def recall(self) -> None:
        """Read from the kernel where the pod stands; for an agent that has just started."""
        try:
            match self._around.rules.standing(self._open(), self.capture):
                case Standing.CAPTURED | Standing.DAMAGED:
                    self.state, self._served = State.ENROLLED, True
                    self._recalled = True
                case Standing.DRAINING:
                    self.state = State.DRAINING
                case Standing.CLOSED:
                    self.state = State.LOST
                case Standing.NONE:
                    self.state = State.NONE
                    # The last agent ended between the table and its routes.
                    if evidence.routing_left_over(self.netns):
                        self._around.rules.remove(self.netns)
        except (OSError, AmbientError) as exc:
            log.debug("%s: %s", self.pod.uid, exc)

    def should_stand(self) -> Table | None:
        """The rules that its namespace should hold now."""
        match self.state:
            case State.ENROLLED:
                return capture_plan(self.capture)
            case State.LOST if self._is_strict():
                return closed_plan(self.capture)
            case State.DRAINING | State.LOST:
                return drain_plan()
            case _:
                return None

    def show(self) -> dict[str, Any]:
        """What should stand in its namespace and what does, as text.

        Raises:
            ConfigError: it has no namespace.
        """
        rules, would = self._around.rules, capture_plan(self.capture)
        should = rules.planned(self.should_stand())
        does = rules.present(self._open(), (would, closed_plan(self.capture), drain_plan()))
        return {
            "uid": self.pod.uid,
            "state": self.state.value,
            "plan": should or rules.planned(would),
            "kernel": does,
            "diff": listing.difference(should, does),
        }

    def is_captured(self, netns: int) -> bool:
        """Whether *netns* holds exactly the rules that the pod is to be captured by."""
        return self._around.rules.standing(netns, self.capture) is Standing.CAPTURED

    async def run(self) -> None:
        """Follow ``want`` until ``gone``. A cancelled one leaves the pod as it stands: agents come and go."""
        try:
            while not self._gone:
                await self._changed.wait()
                self._changed = trio.Event()
                if not self._gone:
                    self._busy = True
                    await self._converge()
                    self._busy = False
            await self._forget()
        finally:
            self._close()

    def _wake(self) -> None:
        self._asked = True
        self._changed.set()

    async def _converge(self) -> None:
        asked, self._asked = self._asked, False
        verdict, self._verdict = self._verdict, None
        started = trio.current_time()
        match self.pod.mode == "ambient", self.state:
            case True, State.ENROLLED if verdict is not None:
                await self._put_right(verdict, started)
            case True, State.ENROLLED:
                await self._mend(asked)
            case True, State.LOST:
                await self._recover(started)
            case True, _:
                if asked:
                    await self._enroll(started)
            case False, State.ENROLLED | State.FAILED | State.LOST:
                await self._release(started)
            case False, State.DRAINING if self._drained:
                await self._finish()
            case False, State.DRAINING if asked:
                await self._release(started)
            case False, State.NONE if asked:
                self._report()

    async def _enroll(self, started: float) -> None:
        try:
            await self._capture(self._open())
        except (OSError, AmbientError) as exc:
            reason = str(exc) or type(exc).__name__
            log.error("%s is not enrolled: %s", self.pod.uid, reason)
            self.state, self.reason = State.FAILED, reason
            self._report(reason, started=started)
            return
        self.state, self.reason = State.ENROLLED, ""
        kept, reset = len(self.existing.kept), len(self.existing.reset)
        log.info("%s is enrolled; %d established connections kept, %d reset", self.pod.uid, kept, reset)
        self._report(existing=self.existing, started=started)

    async def _capture(self, netns: int) -> None:
        """Listeners, then rules; ``existing`` is what was there before."""
        pod_capture.check(netns, self._around.ztunnel.pids())
        was = self.state
        try:
            self._drained = False
            await self._around.ztunnel.add(self._workload(), netns)
            # From here on a ztunnel that comes anew is told of it, though the rules are not there yet.
            self._served = True
            self.existing = await trio.to_thread.run_sync(
                pod_capture.install, self._around.rules, netns, self.pod
            )
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._undo(netns, was)
            raise

    async def _undo(self, netns: int, was: State) -> None:
        """Back to where it was: nothing, draining, or lost."""
        self._served = False
        with suppress(OSError):
            match was:
                case State.LOST:
                    await trio.to_thread.run_sync(self._shut_or_drain, netns, self._is_strict())
                case State.DRAINING:
                    await trio.to_thread.run_sync(self._around.rules.drain, netns)
                case _:
                    await trio.to_thread.run_sync(self._around.rules.remove, netns)
        await self._around.ztunnel.delete(self.pod.uid)

    async def _put_right(self, verdict: Repair | GiveUp, started: float) -> None:
        if isinstance(verdict, GiveUp):
            await self._lose(verdict.reason)
            return
        try:
            match verdict.what:
                case What.RULES:
                    await trio.to_thread.run_sync(self._around.rules.install, self._open(), self.capture)
                    await self._settle(self._is_strict())
                case What.LISTENERS:
                    # It may believe that it listens: forget first.
                    await self._around.ztunnel.delete(self.pod.uid)
                    await self._around.ztunnel.add(self._workload(), self._open())
                    # A rule that finds no listener lets pass.
                    await self._settle(self._is_strict())
                case What.NAMESPACE:
                    await self._move()
        except (OSError, AmbientError) as exc:
            await self._lose(f"{verdict.reason}: {exc}")
            return
        self._repairs += 1
        log.info("%s is right again; that was repair %d", self.pod.uid, self._repairs)
        self._report(started=started)

    async def _move(self) -> None:
        """Leave the namespace that was the pod's, and enroll the one that is."""
        await self._around.ztunnel.delete(self.pod.uid)
        await self._leave()
        self.state = State.LOST
        await self._capture(self._home())
        self.state = State.ENROLLED

    async def _leave(self) -> None:
        """Let go of the namespace; whatever lives in it is not captured any more."""
        self._served = False
        if self._netns is not None:
            with suppress(OSError):
                await trio.to_thread.run_sync(self._around.rules.remove, self._netns)
        self._close()

    async def _lose(self, reason: str) -> None:
        """Not enrolled any more, and nobody is to think otherwise."""
        self.state, self._served = State.LOST, False
        strict = self._is_strict()
        log.error("%s is lost%s: %s", self.pod.uid, ", and closed" if strict else "", reason)
        # Peers first: those who have heard do not dial 15008.
        self._report(reason)
        await self._leave_as_policy_says(strict)
        await self._around.ztunnel.delete(self.pod.uid)

    async def _recover(self, started: float) -> None:
        """Try to enroll a lost pod; in vain, it is left as policy says now."""
        try:
            await self._capture(self._home())
        except (OSError, AmbientError) as exc:
            log.debug("%s is still lost: %s", self.pod.uid, exc)
            await self._leave_as_policy_says(self._is_strict())
            self._report(str(exc) or type(exc).__name__)
            return
        self.state = State.ENROLLED
        self._repairs += 1
        log.info("%s is enrolled again", self.pod.uid)
        self._report(existing=self.existing, started=started)

    def _home(self) -> int:
        """The pod's namespace as it is now.

        Raises:
            ConfigError: there is none, or it is not the pod's.
        """
        if self._netns is not None:
            now = evidence.namespace_at(self.pod.netns, netns_identity(self._netns))
            if now is Namespace.SAME:
                return self._netns
            self._close()
        netns = self._open()
        try:
            pod_capture.check_is_home(netns, self.pod)
        except (OSError, AmbientError):
            self._close()  # Nothing of ours may be done in it.
            raise
        return netns

    def _close(self) -> None:
        if self._netns is not None:
            os.close(self._netns)
            self._netns = None

    def _is_strict(self) -> bool:
        return self._around.is_strict(self.pod.uid)

    async def _settle(self, strict: bool) -> None:
        """What came in past the proxy while no rules stood: told of, and ended where policy refuses it."""
        try:
            found = await trio.to_thread.run_sync(
                partial(pod_capture.settle, self._open(), self.capture, self.existing, strict=strict)
            )
        except OSError as exc:
            log.error("%s may have connections past its proxy: %s", self.pod.uid, exc)
            return
        if came := len(found.kept) - len(self.existing.kept) + len(found.reset):
            ended = len(found.reset)
            log.warning("%s: %d connections came past its proxy, %d of them reset", self.pod.uid, came, ended)
        self.existing = Existing(kept=found.kept)

    async def _leave_as_policy_says(self, strict: bool) -> None:
        if self._netns is None:
            return
        with suppress(OSError):
            if await trio.to_thread.run_sync(self._shut_or_drain, self._netns, strict):
                await self._settle(strict)

    def _shut_or_drain(self, netns: int, strict: bool) -> bool:
        """Whether it was closed by this."""
        now = self._around.rules.standing(netns, self.capture)
        if strict and now is not Standing.CLOSED:
            self._around.rules.put(netns, closed_plan(self.capture))
            return True
        if not strict and now not in (Standing.NONE, Standing.DRAINING):
            self._around.rules.put(netns, drain_plan())
        return False

    async def _mend(self, asked: bool) -> None:
        """It is enrolled as it should be; make sure of the rules and say so."""
        try:
            netns = self._open()
            await trio.to_thread.run_sync(self._around.rules.install, netns, self.capture)
            if self._recalled:
                older = await trio.to_thread.run_sync(sockets.past_the_proxy, netns, self.capture)
                self.existing, self._recalled = Existing(kept=older), False
        except (OSError, AmbientError) as exc:
            log.error("the rules of %s cannot be mended: %s", self.pod.uid, exc)
        if asked:
            self._report(existing=self.existing)

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
        if self.state not in (State.ENROLLED, State.LOST, State.DRAINING):
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
                self.opened += 1
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

    def _report(self, reason: str = "", *, existing: Existing | None = None, started: float = 0.0) -> None:
        took = trio.current_time() - started if started else 0.0
        self._around.report(
            PodReport(
                pod=self.pod.uid,
                state=self.state.value,
                reason=reason,
                established_kept=-1 if existing is None else len(existing.kept),
                established_reset=0 if existing is None else len(existing.reset),
                existing=() if existing is None else tuple(shown(existing.kept + existing.reset)),
                repairs=self._repairs,
                duration_ms=round(took * 1000, 3),
            )
        )
