"""Following control, and certificates that come, stay fresh and go."""

from __future__ import annotations

import gc
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio
import trio.testing

from ambient.engine.follow import Follow, control_socket
from ambient.engine.svids import SvidCache
from ambient.errors import ConfigError, RemoteProtocolError, Unavailable
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Change
from ambient.model.workload import Workload
from ambient.pki.authority import Authority
from ambient.wire import xds

WEB = SpiffeId("cluster.local", "shop", "web")
POD = Workload(uid="u1", name="web-1", namespace="shop", addresses=("10.244.1.2",))


class Control:
    """The other end: answers what the test tells it to."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = trio.socket.from_stdlib_socket(sock)
        self.end = xds.ControlEnd()

    async def next(self, count: int = 1) -> list[Any]:
        events: list[Any] = []
        with trio.fail_after(5):
            while len(events) < count:
                events += self.end.receive_data(await self.sock.recv(65_536))
        return events


@asynccontextmanager
async def following() -> AsyncIterator[tuple[Follow, Control, trio.Nursery]]:
    near, far = socket.socketpair()
    far.setblocking(False)
    follow, control = Follow(near), Control(far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow.run)
        assert await control.next() == [xds.Greeted(xds.VERSION)]
        yield follow, control, nursery
        nursery.cancel_scope.cancel()
    control.sock.close()


async def test_the_mesh_follows_control() -> None:
    """Applied first, acked then: control's order of enrollment counts on it."""
    async with following() as (follow, control, _):
        seen: list[int] = []
        follow.on_update = lambda: seen.append(len(list(follow.mesh.workloads())))
        nonce, data = control.end.update(Change(workloads=(POD,), snapshot=True))
        await control.sock.send(data)
        await follow.synchronised()
        assert await control.next() == [xds.Acked(nonce, "")]
        assert follow.mesh.workload("u1") == POD
        assert (follow.heard.addresses, follow.heard.received) == (1, len(data))
        assert seen == [1]

        def broken() -> None:
            raise ConfigError("no room")

        follow.on_update = broken
        nonce, data = control.end.update(Change(removed_workloads=("u1",)))
        await control.sock.send(data)
        assert await control.next() == [xds.Acked(nonce, "no room")]


@pytest.fixture
def thawed() -> Iterator[None]:
    """Other tests find what they made when they look for it."""
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("thawed")
async def test_traffic_has_its_turn_while_a_large_update_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes by the old mesh until the new one is whole; then the daemon is told, in steps, then control."""
    monkeypatch.setattr("ambient.engine.slices.SLICE_SECONDS", 0.0)
    crowd = tuple(
        replace(POD, uid=f"u{number}", addresses=(f"10.1.{number // 250}.{number % 250}",))
        for number in range(2_000)
    )
    async with following() as (follow, control, nursery):
        _, data = control.end.update(Change(workloads=(POD,), snapshot=True))
        await control.sock.send(data)
        await follow.synchronised()
        await control.next()
        turns: list[tuple[int, int]] = []

        def told() -> Iterator[None]:
            for step in range(50):
                turns.append((-1, step))
                yield

        async def traffic() -> None:
            while True:
                turns.append((follow.mesh.version, len(follow.mesh.workloads())))
                await trio.sleep(0.001)

        follow.on_update = told
        nursery.start_soon(traffic)
        # All that is sent has been read: what follows is the applying alone.
        nonce, data = control.end.update(Change(workloads=crowd), slice_resources=len(crowd))
        sent = memoryview(data)
        while sent:
            sent = sent[await control.sock.send(sent) :]
        assert await control.next() == [xds.Acked(nonce, "")]

    told_at = [number for number, (version, _) in enumerate(turns) if version < 0]
    seen = [each for each in turns if each[0] >= 0]
    assert set(seen) == {(1, 1), (2, len(crowd))}
    assert told_at[-1] - told_at[0] > 50, "nobody had a turn between the steps"
    assert turns.index((2, len(crowd))) > 5, "nobody had a turn while it was applied"


async def test_frames_of_the_daemons_own() -> None:
    """The agent's pods, its reports, and what the two agree on beside the wire."""
    async with following() as (follow, control, _):
        seen: list[Any] = []
        follow.on_pods = seen.append
        follow.on_frame["hint"] = seen.append
        nonce, data = control.end.pods(())
        await control.sock.send(data + control.end.extra("hint", x=1) + control.end.extra("other"))
        assert await control.next() == [xds.Acked(nonce, "")]
        report = xds.PodReport(pod="u1", state="enrolled")
        follow.report(report)
        follow.send({"kind": "report", "free": "form"})
        events = await control.next(2)

        assert events[0] == xds.PodReported(report)
        assert seen == [(), {"kind": "hint", "x": 1}]


@pytest.mark.parametrize(("data", "kind"), [(b"", Unavailable), (b"\xff\xff\xff\xff", RemoteProtocolError)])
async def test_control_that_goes_or_babbles_ends_the_daemon(data: bytes, kind: type[Exception]) -> None:
    """They live together; the supervisor starts both again."""
    near, far = socket.socketpair()
    with far:
        if data:
            far.send(data)
        far.shutdown(socket.SHUT_WR)
        follow = Follow(near)
        with pytest.raises(kind):
            await follow.run()
    assert follow.heard.closed == (kind is Unavailable)
    assert follow.heard.received == len(data)


def test_the_inherited_socket() -> None:
    """A daemon started by hand is told what it lacks."""
    near, far = socket.socketpair()
    with far, control_socket({"AMBIENT_CONTROL_FD": str(near.detach())}) as found:
        assert not found.get_inheritable()
    for text in ("", "x", "٣", "99999"):
        with pytest.raises(ConfigError):
            control_socket({"AMBIENT_CONTROL_FD": text})


class Signer:
    """Control as the cache sees it."""

    def __init__(self) -> None:
        self.authority = Authority(time.time())
        self.asked = 0
        self.error = ""
        self.identity: SpiffeId | None = None

    async def certificate(self, identity: SpiffeId, csr: bytes) -> xds.Certified:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.error:
            raise Unavailable(self.error)
        issued = self.authority.issue(csr, self.identity or identity, time.time())
        return xds.Certified(self.asked, issued.chain, issued.roots, 0.0)


@asynccontextmanager
async def caching() -> AsyncIterator[tuple[SvidCache, Signer, Any]]:
    signer = Signer()
    clock = Clock()
    cache = SvidCache(signer, clock=clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        yield cache, signer, clock
        nursery.cancel_scope.cancel()


class Clock:
    """Wall time plus what the test adds."""

    def __init__(self) -> None:
        self.extra = 0.0

    def __call__(self) -> float:
        return time.time() + self.extra


async def test_a_certificate_is_fetched_once_for_everyone() -> None:
    """A hundred connections at start-up are one CSR."""
    async with caching() as (cache, signer, _), trio.open_nursery() as nursery:
        for _number in range(5):
            nursery.start_soon(cache.get, WEB)
        svid = await cache.get(WEB)

        assert signer.asked == 1
        assert svid.identity == WEB
        context = cache.context_nowait(WEB, server=True)
        assert context is cache.context_nowait(WEB, server=True)
        assert context is not cache.context_nowait(WEB, server=False)
        assert list(cache.statistics()) == [str(WEB)]


async def test_a_refusal_is_heard_at_once_and_tried_again() -> None:
    """The reason reaches the access record; the next attempt may succeed."""
    async with caching() as (cache, signer, _):
        signer.error = "no pod of shop/web on this node"
        with pytest.raises(Unavailable, match="no pod"):
            await cache.get(WEB)
        with pytest.raises(Unavailable, match="no pod"):
            cache.context_nowait(WEB, server=False)
        signer.error = ""
        renewed = trio.Event()
        cache.on_renewed = lambda identity: renewed.set()
        with trio.fail_after(10):
            await renewed.wait()
        assert await cache.get(WEB)


async def test_an_expired_certificate_is_not_used() -> None:
    """Until its last second it is, and not one longer."""
    async with caching() as (cache, _, clock):
        svid = await cache.get(WEB)
        clock.extra = svid.not_after - time.time() + 1
        with pytest.raises(Unavailable, match="expired"):
            cache.context_nowait(WEB, server=False)
        clock.extra = 0.0
        cache.forget(WEB)
        cache.forget(WEB)
        with pytest.raises(Unavailable, match="never asked"):
            cache.context_nowait(WEB, server=False)


async def test_a_certificate_for_somebody_else_is_refused() -> None:
    """A confused control plane must not hand us another's name."""
    async with caching() as (cache, signer, _):
        signer.certificate = _crossed(signer)  # type: ignore[method-assign]
        with pytest.raises(Unavailable):
            await cache.get(WEB)


def _crossed(signer: Signer) -> Any:
    from ambient.pki.request import new_request

    async def certificate(identity: SpiffeId, csr: bytes) -> xds.Certified:
        other = SpiffeId("cluster.local", "shop", "other")
        issued = signer.authority.issue(new_request(other)[1], other, time.time())
        return xds.Certified(1, issued.chain, issued.roots, 0.0)

    return certificate


async def test_renewal_at_half_life() -> None:
    """New connections get the new certificate; nobody is interrupted."""
    renewed: list[SpiffeId] = []
    signer = Signer()
    clock = Clock()
    cache = SvidCache(signer, clock=clock)
    cache.on_renewed = renewed.append
    entry_delay = cache._renewed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        svid = await cache.get(WEB)
        before = cache.context_nowait(WEB, server=False)
        clock.extra = (svid.not_after - svid.not_before) / 2
        assert entry_delay(WEB, cache._entries[WEB], svid) == 1.0
        nursery.cancel_scope.cancel()

    assert renewed == [WEB, WEB]
    assert cache.context_nowait(WEB, server=False) is not before
