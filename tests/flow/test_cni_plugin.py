"""``ambient-cni`` against the agent's end of its socket: when a pod may start, and what a runtime is told."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from ambient.engine.rpc import Call
from ambient.errors import Denied
from ambient.fabric import polling
from ambient.redirect import cni, cni_server
from ambient.redirect.backend import Standing
from ambient.redirect.backends import Nowhere
from ambient.redirect.cni_server import CniServer
from ambient.redirect.keeper_plan import State
from ambient.redirect.plan import Capture
from ambient.wire.xds import NodePod

NETNS = "/proc/self/ns/net"
PREVIOUS = {"cniVersion": "1.0.0", "interfaces": [{"name": "eth0"}], "ips": [{"address": "10.244.1.2/24"}]}


class Rules(Nowhere):
    """Remembers which descriptors it cleaned, since numbers come again."""

    def __init__(self) -> None:
        super().__init__()
        self.removed = 0

    def remove(self, netns: int) -> None:
        self.removed += 1
        super().remove(netns)


class Keeper:
    """The part of a ``PodKeeper`` that is asked."""

    def __init__(self, mode: str = "ambient", netns: str = f"/proc/{os.getpid()}/ns/net") -> None:
        self.pod = NodePod(
            uid="u", namespace="shop", name="web", service_account="web", addresses=(), netns=netns, mode=mode
        )
        self.state = State.NONE
        self.reason = ""
        self.captured = True

    def is_captured(self, _netns: int) -> bool:
        return self.captured


@dataclass
class Node:
    """A node's agent as the plugin sees it."""

    socket: Path
    pods: dict[tuple[str, str], Keeper] = field(default_factory=dict)
    ztunnel: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(connected=True))
    rules: Rules = field(default_factory=Rules)
    server: CniServer | None = None

    def changed(self) -> None:
        assert self.server is not None
        self.server.changed()

    async def call(
        self, command: str, *, version: str = "1.1.0", netns: str = NETNS, **config: Any
    ) -> tuple[int, dict[str, Any]]:
        """Run the plugin; its exit code and what it printed."""
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": netns,
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web",
        }
        body = {"cniVersion": version, "name": "n", "socket": str(self.socket), "prevResult": PREVIOUS}
        data = json.dumps({**body, **config}).encode()
        code, output = await trio.to_thread.run_sync(cni.run, environment, data)
        return code, json.loads(output or b"{}")


def _exists(path: Path) -> Callable[[], Awaitable[bool]]:
    async def exists() -> bool:
        return path.exists()

    return exists


@asynccontextmanager
async def node(tmp_path: Path, **pods: Keeper) -> AsyncIterator[Node]:
    made = Node(tmp_path / "cni.sock", {("shop", name): keeper for name, keeper in pods.items()})

    def find(namespace: str, name: str) -> Any:
        return made.pods.get((namespace, name))

    made.server = CniServer(str(made.socket), find, made.ztunnel, made.rules)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.server.run)
        with trio.fail_after(5):
            await polling.until(_exists(made.socket))
        yield made
        nursery.cancel_scope.cancel()


async def test_add_returns_when_the_pod_is_captured_and_not_before(tmp_path: Path) -> None:
    """Else its first connections would go out in plaintext."""
    keeper = Keeper()
    async with node(tmp_path, web=keeper) as agent, trio.open_nursery() as nursery:
        answers: list[tuple[int, dict[str, Any]]] = []
        answered = trio.Event()

        async def add() -> None:
            answers.append(await agent.call("ADD"))
            answered.set()

        nursery.start_soon(add)
        with trio.move_on_after(0.5):
            await trio.sleep_forever()
        assert answers == []
        keeper.state = State.ENROLLED
        agent.changed()
        with trio.fail_after(10):
            await answered.wait()

        assert answers == [(0, PREVIOUS)]


async def test_add_of_a_pod_that_control_has_not_named_waits_for_it(tmp_path: Path) -> None:
    """The runtime may be faster."""
    async with node(tmp_path) as agent, trio.open_nursery() as nursery:

        async def name_it() -> None:
            await trio.sleep(0.1)
            agent.pods["shop", "web"] = Keeper(mode="none")
            agent.changed()

        nursery.start_soon(name_it)

        assert await agent.call("ADD") == (0, PREVIOUS)


async def test_a_pod_outside_the_mesh_passes_at_once(tmp_path: Path) -> None:
    """ambient-cni is chained for every pod of a node."""
    async with node(tmp_path, web=Keeper(mode="none")) as agent:
        assert await agent.call("ADD") == (0, PREVIOUS)


@pytest.mark.parametrize("mode", ["ambient", "none"])
async def test_a_pod_that_cannot_be_captured_does_not_start(tmp_path: Path, mode: str) -> None:
    """Also when control has given up on it meanwhile, which is mode none again."""
    keeper = Keeper(mode=mode)
    keeper.state, keeper.reason = State.FAILED, "port 15001 is taken by nginx (pid 71)"
    async with node(tmp_path, web=keeper) as agent:
        code, said = await agent.call("ADD")

    assert (code, said["code"]) == (1, 100)
    assert said["msg"] == "pod shop/web: it cannot be captured: port 15001 is taken by nginx (pid 71)"


async def test_what_takes_too_long_is_to_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deadline for the capture and one for control, who may know a pod of that name elsewhere."""
    monkeypatch.setattr(cni_server, "NAMED_SECONDS", 0.05)
    async with node(tmp_path, web=Keeper()) as agent:
        code, said = await agent.call("ADD", timeout=0.05)
        assert (code, said["code"]) == (1, 11)
        assert "was not captured within 0.05 s" in said["msg"]

        agent.pods["shop", "web"] = Keeper(netns="/proc/self/ns/uts")
        code, said = await agent.call("ADD")
        assert (code, said["code"]) == (1, 11)
        assert "control has not named it" in said["msg"]


async def test_check_compares_the_kernel_with_what_should_be(tmp_path: Path) -> None:
    """A runtime that asks may then replace the pod."""
    keeper = Keeper()
    async with node(tmp_path, web=keeper) as agent:
        assert (await agent.call("CHECK"))[0] == 0
        keeper.captured = False
        code, said = await agent.call("CHECK")
        assert (code, said["code"]) == (1, 100)
        agent.pods.clear()
        assert (await agent.call("CHECK"))[1]["code"] == 100


async def test_del_never_fails_and_cleans_what_nobody_keeps(tmp_path: Path) -> None:
    """A runtime would try for ever; rules of a pod that control still keeps are control's to remove."""
    async with node(tmp_path, web=Keeper()) as agent:
        assert await agent.call("DEL") == (0, {})
        assert agent.rules.removed == 0
        agent.pods.clear()
        assert await agent.call("DEL") == (0, {})
        assert await agent.call("DEL") == (0, {})
        assert agent.rules.removed == 2
        assert await agent.call("DEL", netns="") == (0, {})
        assert await agent.call("DEL", netns="/proc/0/ns/net") == (0, {})
        assert await agent.call("DEL", socket="/nowhere/cni.sock") == (0, {})


async def test_status_says_whether_pods_could_be_captured(tmp_path: Path) -> None:
    """Code 50 keeps a runtime from starting pods here (CNI 1.1)."""
    async with node(tmp_path) as agent:
        assert await agent.call("STATUS") == (0, {})
        agent.ztunnel.connected = False
        assert (await agent.call("STATUS"))[1]["code"] == 50
        assert (await agent.call("STATUS", socket="/nowhere/cni.sock"))[1]["code"] == 50
        assert await agent.call("GC") == (0, {})


async def test_without_an_agent_nothing_starts(tmp_path: Path) -> None:
    """Fail closed, and say whom to look for."""
    code, said = await Node(tmp_path / "cni.sock").call("ADD")

    assert (code, said["code"], said["cniVersion"]) == (1, 11, "1.1.0")
    assert "the node's agent does not answer" in said["msg"]


async def test_only_root_and_the_owner_of_the_mesh_may_ask(tmp_path: Path) -> None:
    """SO_PEERCRED: the socket's mode is one thing, whose process it is another."""
    server = CniServer(str(tmp_path / "s"), lambda _namespace, _name: None, None, Rules())  # type: ignore[arg-type]

    async def emit(_value: Any) -> None:
        return None

    netns = os.open(NETNS, os.O_RDONLY)
    with pytest.raises(Denied, match="uid 4711"):
        await server.add(Call("cni_add", {}, [netns], 1, 4711, emit))
    with pytest.raises(OSError):
        os.fstat(netns)  # Refused, and closed all the same.


def test_the_backend_without_a_kernel_keeps_the_contract() -> None:
    """The tests above lean on it."""
    rules = Nowhere()
    rules.install(7, Capture())

    assert rules.standing(7) is Standing.CAPTURED
