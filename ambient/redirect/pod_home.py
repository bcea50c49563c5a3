"""The network namespace of one pod: found, opened once, and what is put into it and taken out of it.

Calls that may wait for the kernel run in a thread. In which order they come is ``pod_keeper``'s.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import partial

import trio

from ambient.engine.netns import netns_identity, open_netns
from ambient.errors import AmbientError, ConfigError
from ambient.redirect import evidence, pod_capture, sockets
from ambient.redirect.attestation_plan import Namespace
from ambient.redirect.backend import Standing
from ambient.redirect.backends import Backend
from ambient.redirect.keeper_plan import State
from ambient.redirect.plan import Capture, closed_plan, drain_plan
from ambient.redirect.pod_capture import Existing
from ambient.wire.xds import NodePod

log = logging.getLogger("agent")


class PodHome:
    """One pod's namespace.

    Attributes:
        fd: Its descriptor; None while it is not open.
        opened: How often a namespace was opened.
    """

    def __init__(self, rules: Backend) -> None:
        self.rules = rules
        self.fd: int | None = None
        self.opened = 0

    def open(self, pod: NodePod) -> int:
        """The pod's namespace, opened once: its path may come to mean another one.

        Raises:
            ConfigError: there is none.
        """
        if self.fd is None:
            try:
                self.fd = open_netns(pod.netns)
                self.opened += 1
            except OSError as exc:
                raise ConfigError(f"no network namespace {pod.netns!r}: {exc.strerror}") from exc
        return self.fd

    def open_now(self, pod: NodePod) -> int:
        """The pod's namespace as it is now.

        Raises:
            ConfigError: there is none, or it is not the pod's.
        """
        if self.fd is not None:
            if evidence.namespace_at(pod.netns, netns_identity(self.fd)) is Namespace.SAME:
                return self.fd
            self.close()
        netns = self.open(pod)
        try:
            pod_capture.check_is_home(netns, pod)
        except (OSError, AmbientError):
            self.close()  # Nothing of ours may be done in it.
            raise
        return netns

    def close(self) -> None:
        """Let go of it, if it is open."""
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def state(self, pod: NodePod) -> tuple[State, bool]:
        """Read from the kernel where *pod* stands, and whether ztunnel is to serve it.

        What the last agent left half undone, because it ended between the table and its routes, is undone.

        Raises:
            OSError, AmbientError: it cannot be read.
        """
        netns = self.open(pod)
        match self.rules.standing(netns, pod_capture.capture_of(pod)):
            case Standing.CAPTURED | Standing.DAMAGED:
                return State.ENROLLED, True
            case Standing.DRAINING:
                return State.DRAINING, False
            case Standing.CLOSED:
                return State.LOST, False
            case Standing.NONE:
                if evidence.routing_left_over(netns):
                    self.rules.remove(netns)
                return State.NONE, False

    def is_captured(self, netns: int, capture: Capture) -> bool:
        """Whether *netns* holds exactly the rules of *capture*."""
        return self.rules.standing(netns, capture) is Standing.CAPTURED

    async def capture(self, pod: NodePod) -> Existing:
        """Put the rules in; what was there before.

        Raises:
            OSError, AmbientError: they cannot be.
        """
        return await trio.to_thread.run_sync(pod_capture.install, self.rules, self._open(), pod)

    async def install(self, capture: Capture) -> None:
        """Make sure of the rules.

        Raises:
            OSError, AmbientError: they cannot be had.
        """
        await trio.to_thread.run_sync(self.rules.install, self._open(), capture)

    async def older(self, capture: Capture) -> Existing:
        """The connections of a captured pod that its proxy does not carry.

        Raises:
            OSError: the kernel does not say.
        """
        return Existing(kept=await trio.to_thread.run_sync(sockets.past_the_proxy, self._open(), capture))

    async def drain(self) -> None:
        """Capture nothing new.

        Raises:
            ConfigError: nothing is captured.
            OSError: the rules cannot be changed.
        """
        if self.rules.standing(self._open()) is Standing.NONE:
            raise ConfigError("it is not captured")
        await trio.to_thread.run_sync(self.rules.drain, self._open())

    async def remove(self) -> None:
        """Leave nothing behind, if it still can be reached."""
        if self.fd is not None:
            with suppress(OSError):
                await trio.to_thread.run_sync(self.rules.remove, self.fd)

    async def restore(self, was: State, capture: Capture, *, strict: bool) -> None:
        """Back to what stood when the pod was in the state that it *was* in: nothing, draining, or lost."""
        with suppress(OSError):
            match was:
                case State.LOST:
                    await trio.to_thread.run_sync(self._shut_or_drain, self._open(), capture, strict)
                case State.DRAINING:
                    await trio.to_thread.run_sync(self.rules.drain, self._open())
                case _:
                    await trio.to_thread.run_sync(self.rules.remove, self._open())

    async def shut_or_drain(self, capture: Capture, *, strict: bool) -> bool:
        """A lost pod is open as before its enrollment, or closed where policy is *strict*; whether it was
        closed by this.
        """
        if self.fd is not None:
            with suppress(OSError):
                return await trio.to_thread.run_sync(self._shut_or_drain, self.fd, capture, strict)
        return False

    async def settle(self, pod: NodePod, existing: Existing, *, strict: bool) -> Existing:
        """What came in past the proxy while no rules stood: told of, and ended where policy refuses it.

        Returns:
            The connections that are older, or came past, and live.
        """
        try:
            found = await trio.to_thread.run_sync(
                partial(
                    pod_capture.settle,
                    self.open(pod),
                    pod_capture.capture_of(pod),
                    existing,
                    strict=strict,
                )
            )
        except OSError as exc:
            log.error("%s may have connections past its proxy: %s", pod.uid, exc)
            return existing
        if came := len(found.kept) - len(existing.kept) + len(found.reset):
            ended = len(found.reset)
            log.warning("%s: %d connections came past its proxy, %d of them reset", pod.uid, came, ended)
        return Existing(kept=found.kept)

    def _shut_or_drain(self, netns: int, capture: Capture, strict: bool) -> bool:
        now = self.rules.standing(netns, capture)
        if strict and now is not Standing.CLOSED:
            self.rules.put(netns, closed_plan(capture))
            return True
        if not strict and now not in (Standing.NONE, Standing.DRAINING):
            self.rules.put(netns, drain_plan())
        return False

    def _open(self) -> int:
        assert self.fd is not None
        return self.fd
