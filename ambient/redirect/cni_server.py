"""What the node's agent answers at its socket: ambient-cni (is this pod captured?) and the desk (how?)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import trio

from ambient.engine.netns import netns_identity, open_netns
from ambient.engine.rpc import FAILED, Call, RpcError, serve_admin
from ambient.errors import Denied, Unavailable
from ambient.redirect.backends import Backend
from ambient.redirect.keeper_plan import State
from ambient.redirect.pod_keeper import PodKeeper
from ambient.redirect.zds_server import ZdsServer

log = logging.getLogger("agent")

# How long a pod may be known to the runtime and not to control: the two learn of it at about the same
# time. Picked, not measured.
NAMED_SECONDS = 10.0
MAX_ADD_SECONDS = 300.0


class CniServer:
    """Answers the plugin.

    Args:
        find: Returns the keeper of (namespace, name), if control has named such a pod.
    """

    def __init__(
        self,
        path: str,
        find: Callable[[str, str], PodKeeper | None],
        ztunnels: ZdsServer,
        rules: Backend,
    ) -> None:
        self._path = path
        self._find = find
        self._ztunnels = ztunnels
        self._rules = rules
        self._changed = trio.Event()

    async def run(self) -> None:
        """Serve until cancelled."""
        methods = {
            "cni_add": self.add,
            "cni_check": self.check,
            "cni_del": self.delete,
            "cni_status": self.status,
            "redirect_show": self.show,
        }
        await serve_admin(
            Path(self._path), methods, on_failure=lambda exc: log.error("a CNI call failed: %r", exc)
        )

    def changed(self) -> None:
        """Call after control named pods, and after a pod came to stand elsewhere."""
        self._changed.set()
        self._changed = trio.Event()

    async def add(self, call: Call) -> dict[str, Any]:
        """Return when the pod is captured, if it is to be.

        Raises:
            Unavailable: control or the capture takes too long.
            RpcError: it cannot be captured.
        """
        with _owned(call) as netns:
            who = _who(call.params)
            keeper = await self._named(*who, netns)
            await self._captured(keeper, min(float(call.params["timeout"]), MAX_ADD_SECONDS))
            log.info("CNI ADD %s/%s: %s", *who, keeper.state.value)
            return {"enrolled": keeper.state is State.ENROLLED}

    async def check(self, call: Call) -> dict[str, Any]:
        """Whether the pod stands as it should.

        Raises:
            RpcError: it does not.
        """
        with _owned(call) as netns:
            keeper = self._find(*_who(call.params))
            if keeper is None or not _is_its(keeper, netns):
                raise RpcError(FAILED, "control does not know the pod, or knows it elsewhere")
            if keeper.pod.mode == "ambient" and not keeper.is_captured(netns):
                raise RpcError(FAILED, "it should be captured, and its rules are not what they should be")
            return {"enrolled": keeper.state is State.ENROLLED}

    async def delete(self, call: Call) -> dict[str, Any]:
        """The pod ends. Control takes it out of the mesh; only rules that nobody keeps are removed here."""
        _require_owner(call)
        try:
            for netns in call.fds:
                keeper = self._find(*_who(call.params))
                if keeper is None or not _is_its(keeper, netns):
                    await trio.to_thread.run_sync(self._rules.remove, netns)
        finally:
            for fd in call.fds:
                os.close(fd)
        return {}

    async def status(self, call: Call) -> dict[str, Any]:
        """Whether pods could be captured now.

        Raises:
            Unavailable: there is no ztunnel.
        """
        _require_owner(call)
        if not self._ztunnels.connected:
            raise Unavailable("no ztunnel is connected to this node's agent")
        return {}

    async def show(self, call: Call) -> dict[str, Any]:
        """What should stand in a pod's namespace and what does; for ``ambient redirect show``.

        Raises:
            RpcError: the agent has no such pod.
        """
        _require_owner(call)
        keeper = self._find(*_who(call.params))
        if keeper is None:
            raise RpcError(FAILED, "the node's agent has no such pod: it is not running, or has a sidecar")
        return keeper.show()

    async def _named(self, namespace: str, name: str, netns: int) -> PodKeeper:
        with trio.move_on_after(NAMED_SECONDS):
            while True:
                keeper = self._find(namespace, name)
                # A pod of that name may be on its way out, in a namespace of its own.
                if keeper is not None and _is_its(keeper, netns):
                    return keeper
                await self._changed.wait()
        raise Unavailable(f"control has not named it within {NAMED_SECONDS:g} s; see: ambient get pods")

    async def _captured(self, keeper: PodKeeper, timeout: float) -> None:
        with trio.move_on_after(timeout):
            # Control takes a failed pod back to mode none: only the reason tells that it was wanted.
            while keeper.pod.mode == "ambient" and keeper.state not in (State.ENROLLED, State.FAILED):
                await self._changed.wait()
            if keeper.state is not State.ENROLLED and keeper.reason:
                raise RpcError(FAILED, f"it cannot be captured: {keeper.reason}")
            return
        raise Unavailable(f"it was not captured within {timeout:g} s")


class _owned:
    """The one descriptor of a call, closed when the block is left."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def __enter__(self) -> int:
        try:
            _require_owner(self._call)
            if len(self._call.fds) != 1:
                raise RpcError(FAILED, f"one namespace is needed, {len(self._call.fds)} descriptors came")
        except BaseException:
            self._close()
            raise
        return self._call.fds[0]

    def __exit__(self, *exc: object) -> None:
        self._close()

    def _close(self) -> None:
        for fd in self._call.fds:
            os.close(fd)


def _require_owner(call: Call) -> None:
    """SO_PEERCRED: a runtime runs plugins as root, or as whoever runs the mesh."""
    if call.peer_uid not in (0, os.geteuid()):
        raise Denied(f"uid {call.peer_uid} may not ask the node's agent")


def _who(params: Mapping[str, Any]) -> tuple[str, str]:
    return str(params.get("namespace", "")), str(params.get("pod", ""))


def _is_its(keeper: PodKeeper, netns: int) -> bool:
    try:
        fd = open_netns(keeper.pod.netns)
    except OSError:
        return False
    try:
        return netns_identity(fd) == netns_identity(netns)
    finally:
        os.close(fd)
