"""One pod of the node: brought to where control wants it, in the order that loses no connection.

    enroll     namespace and ports checked -> ztunnel listens -> rules, at once -> "enrolled"
    release    rules that capture nothing new -> ztunnel stops listening -> "draining"
               -> ztunnel: the last captured connection ended -> no rules -> "none"

    repair     what attestation found wrong is put right; what cannot be is "lost": not enrolled, tried again
               from time to time, and meanwhile, if policy refuses plaintext, closed to whoever comes

What is refused leaves nothing behind. Where the pod stands is read from its namespace when the agent
starts, so an agent may come and go without anybody noticing. What comes next is ``keeper_plan``'s, what is
done inside the namespace is ``pod_home``'s.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import trio

from ambient.errors import AmbientError, Unavailable
from ambient.redirect import backend, listing, pod_capture, sockets
from ambient.redirect.attestation_plan import GiveUp, Repair, What
from ambient.redirect.backends import Backend
from ambient.redirect.keeper_plan import State, Step, next_step, should_stand, workload_of
from ambient.redirect.plan import Capture, capture_plan, closed_plan, drain_plan
from ambient.redirect.pod_capture import Existing
from ambient.redirect.pod_home import PodHome
from ambient.redirect.pod_report import report_of
from ambient.wire.nft import Table
from ambient.wire.xds import NodePod, PodReport
from ambient.wire.zds import WorkloadInfo

log = logging.getLogger("agent")


class Ztunnel(Protocol):
    """The part of ``ZdsServer`` that a pod needs."""

    def pids(self) -> frozenset[int]:
        """The processes of the node's ztunnels."""
        ...

    async def ready(self) -> None:
        """Return when there is one; raises ``Unavailable``."""
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
        reason: Why it was not enrolled when that was last tried, if it was not.
        existing: Connections older than its capture; attestation takes off those that have ended.
    """

    def __init__(self, pod: NodePod, around: Around) -> None:
        self.pod = pod
        self.state = State.NONE
        self.reason = ""
        self.existing = Existing()
        self._around = around
        self._home = PodHome(around.rules)
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
        return idle and self.state is State.ENROLLED and self._served and self._home.fd is not None

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
        assert self._home.fd is not None
        return self._home.fd

    @property
    def opened(self) -> int:
        """How often it opened a namespace."""
        return self._home.opened

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
        if self._served and self._home.fd is not None:
            return workload_of(self.pod), self._home.fd
        return None

    def recall(self) -> None:
        """Read from the kernel where the pod stands; for an agent that has just started."""
        try:
            self.state, self._served = self._home.state(self.pod)
            self._recalled = self._served
        except (OSError, AmbientError) as exc:
            log.debug("%s: %s", self.pod.uid, exc)

    def should_stand(self) -> Table | None:
        """The rules that its namespace should hold now."""
        return should_stand(self.state, self.capture, strict=self._is_strict())

    def show(self) -> dict[str, Any]:
        """What should stand in its namespace and what does, as text.

        Raises:
            ConfigError: it has no namespace.
        """
        rules, would = self._around.rules, capture_plan(self.capture)
        should = rules.planned(self.should_stand())
        does = rules.present(self._home.open(self.pod), (would, closed_plan(self.capture), drain_plan()))
        return {
            "uid": self.pod.uid,
            "state": self.state.value,
            "plan": should or rules.planned(would),
            "kernel": does,
            "diff": listing.difference(should, does),
        }

    def is_captured(self, netns: int) -> bool:
        """Whether *netns* holds exactly the rules that the pod is to be captured by."""
        return self._home.is_captured(netns, self.capture)

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
            self._home.close()

    def _wake(self) -> None:
        self._asked = True
        self._changed.set()

    async def _converge(self) -> None:
        asked, self._asked = self._asked, False
        verdict, self._verdict = self._verdict, None
        started = trio.current_time()
        step = next_step(
            self.state,
            wanted=self.wanted,
            asked=asked,
            judged=verdict is not None,
            drained=self._drained,
        )
        match step:
            case Step.PUT_RIGHT if verdict is not None:
                await self._put_right(verdict, started)
            case Step.MEND:
                await self._mend(asked)
            case Step.RECOVER:
                await self._recover(started)
            case Step.ENROLL:
                await self._enroll(started)
            case Step.RELEASE:
                await self._release(started)
            case Step.FINISH:
                await self._finish()
            case Step.TELL:
                self._report()

    async def _enroll(self, started: float) -> None:
        try:
            await self._capture(self._home.open(self.pod))
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
        pod_capture.check_namespace(netns)
        if sockets.anybody_listens(netns):
            # Perhaps a ztunnel that is about to come back: until then its sockets look like somebody else's.
            await self._around.ztunnel.ready()
            pod_capture.check_ports(netns, self._around.ztunnel.pids())
        was = self.state
        try:
            self._drained = False
            await self._listen(netns)
            # From here on a ztunnel that comes anew is told of it, though the rules are not there yet.
            self._served = True
            self.existing = await self._home.capture(self.pod)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._undo(was)
            raise

    async def _listen(self, netns: int) -> None:
        """Have ztunnel listen in the namespace; in vain, say who is in its way there, if anybody is."""
        try:
            await self._around.ztunnel.add(workload_of(self.pod), netns)
        except Unavailable:
            # On one address only, for example. Finding that takes a walk over all listeners of the machine.
            pod_capture.check_ports(netns, self._around.ztunnel.pids())
            raise

    async def _undo(self, was: State) -> None:
        """Back to where it was: nothing, draining, or lost."""
        self._served = False
        await self._home.restore(was, self.capture, strict=self._is_strict())
        await self._around.ztunnel.delete(self.pod.uid)

    async def _put_right(self, verdict: Repair | GiveUp, started: float) -> None:
        if isinstance(verdict, GiveUp):
            await self._lose(verdict.reason)
            return
        try:
            match verdict.what:
                case What.RULES:
                    await self._home.install(self.capture)
                    await self._settle()
                case What.LISTENERS:
                    # It may believe that it listens: forget first.
                    await self._around.ztunnel.delete(self.pod.uid)
                    await self._around.ztunnel.add(workload_of(self.pod), self._home.open(self.pod))
                    # A rule that finds no listener lets pass.
                    await self._settle()
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
        await self._capture(self._home.open_now(self.pod))
        self.state = State.ENROLLED

    async def _leave(self) -> None:
        """Let go of the namespace; whatever lives in it is not captured any more."""
        self._served = False
        await self._home.remove()
        self._home.close()

    async def _lose(self, reason: str) -> None:
        """Not enrolled any more, and nobody is to think otherwise."""
        self.state, self._served = State.LOST, False
        strict = self._is_strict()
        log.error("%s is lost%s: %s", self.pod.uid, ", and closed" if strict else "", reason)
        # Peers first: those who have heard do not dial 15008.
        self._report(reason)
        await self._leave_as_policy_says(strict=strict)
        await self._around.ztunnel.delete(self.pod.uid)

    async def _recover(self, started: float) -> None:
        """Try to enroll a lost pod; in vain, it is left as policy says now."""
        try:
            await self._capture(self._home.open_now(self.pod))
        except (OSError, AmbientError) as exc:
            log.debug("%s is still lost: %s", self.pod.uid, exc)
            await self._leave_as_policy_says(strict=self._is_strict())
            self._report(str(exc) or type(exc).__name__)
            return
        self.state = State.ENROLLED
        self._repairs += 1
        log.info("%s is enrolled again", self.pod.uid)
        self._report(existing=self.existing, started=started)

    def _is_strict(self) -> bool:
        return self._around.is_strict(self.pod.uid)

    async def _settle(self) -> None:
        """Account for what came in past the proxy while no rules stood."""
        self.existing = await self._home.settle(self.pod, self.existing, strict=self._is_strict())

    async def _leave_as_policy_says(self, *, strict: bool) -> None:
        if await self._home.shut_or_drain(self.capture, strict=strict):
            self.existing = await self._home.settle(self.pod, self.existing, strict=strict)

    async def _mend(self, asked: bool) -> None:
        """It is enrolled as it should be; make sure of the rules and say so."""
        try:
            self._home.open(self.pod)
            await self._home.install(self.capture)
            if self._recalled:
                self.existing, self._recalled = await self._home.older(self.capture), False
        except (OSError, AmbientError) as exc:
            log.error("the rules of %s cannot be mended: %s", self.pod.uid, exc)
        if asked:
            self._report(existing=self.existing)

    async def _release(self, started: float) -> None:
        self.existing = Existing()  # Nobody would notice their end any more.
        try:
            self._home.open(self.pod)
            await self._home.drain()
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
        await self._home.remove()
        self.state = State.NONE
        log.info("%s has left the mesh", self.pod.uid)
        self._report()

    async def _forget(self) -> None:
        """ztunnel need not serve it any more; if its namespace lives on, nothing there leads nowhere."""
        if self.state not in (State.ENROLLED, State.LOST, State.DRAINING):
            return
        self._served = False
        await self._around.ztunnel.delete(self.pod.uid)
        await self._home.remove()

    def _report(self, reason: str = "", *, existing: Existing | None = None, started: float = 0.0) -> None:
        took = round((trio.current_time() - started) * 1000, 3) if started else 0.0
        told = report_of(self.pod, self.state, reason, existing, repairs=self._repairs, duration_ms=took)
        self._around.report(told)
