"""Links: who counts as knowing, and what happens to one that does not answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from ambient.control.bell import Bell
from ambient.control.distribution import (
    LONGEST_UPDATE_SECONDS,
    UPDATE_SECONDS,
    Differences,
    Distribution,
    Link,
    Peer,
)
from ambient.control.registry_plan import Registry, change_between
from ambient.errors import Unavailable
from ambient.model.identity import SpiffeId
from ambient.model.workload import Workload
from ambient.pki.authority import Issued
from ambient.wire.xds import DaemonEnd, NodePod, PodReport, Updated


@dataclass
class FakeOwner:
    """A control plane that knows one registry, and signs nothing."""

    bell: Bell
    now: Registry = field(default_factory=Registry)
    heard: list[Mapping[str, Any]] = field(default_factory=list)
    wake: Callable[[], None] = lambda: None
    looked: Callable[[], None] = lambda: None

    def registry(self) -> Registry:
        return self.now

    def node_pods(self, node: str) -> tuple[NodePod, ...]:
        self.looked()
        return ()

    def certify(self, peer: Peer, identity: SpiffeId, csr: bytes) -> Issued:
        raise Unavailable("not now")

    def pod_reported(self, peer: Peer, report: PodReport) -> None:
        raise AssertionError("nobody reports here")

    def frame_received(self, peer: Peer, frame: Mapping[str, Any]) -> None:
        self.heard.append(frame)

    def link_changed(self) -> None:
        self.bell.ring()

    def publish(self, version: int) -> None:
        one = Workload(uid=f"u{version}", name="n", namespace="s")
        self.now = Registry(version=version, workloads={one.uid: one})
        self.wake()


class Conversation:
    """One link, with the daemon's end in the test's hands."""

    def __init__(self, role: str = "ztunnel", crowd: int = 1) -> None:
        self.bell = Bell()
        self.owner = FakeOwner(self.bell)
        self.end = DaemonEnd()
        self.stream, theirs = trio.testing.memory_stream_pair()
        self.link = Link(Peer(role, "node-1"), theirs, self.owner, self.bell, 0.05, crowd=lambda: crowd)
        self.distribution = Distribution(self.owner, self.bell)
        self.distribution._links.append(self.link)
        self.owner.wake = self.distribution.wake

    async def begin(self, nursery: trio.Nursery) -> Updated:
        """The daemon says hello, and hears of version 1."""
        nursery.start_soon(self.link.run)
        self.owner.publish(1)
        await self.say(self.end.hello())
        first, *pods = await self.hear()
        assert isinstance(first, Updated)
        assert len(pods) == (self.link.peer.role == "agent")
        return first

    async def hear(self) -> list[object]:
        await trio.testing.wait_all_tasks_blocked()
        return list(self.end.receive_data(bytes(await self.stream.receive_some(65536))))

    async def say(self, data: bytes) -> None:
        await self.stream.send_all(data)
        await trio.testing.wait_all_tasks_blocked()


async def test_one_update_may_carry_many_versions() -> None:
    """Until it is acked, none of them is applied."""
    talk = Conversation()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.link.run)
        talk.owner.publish(1)
        talk.owner.publish(5)
        await talk.say(talk.end.hello())
        (update,) = await talk.hear()
        assert isinstance(update, Updated)
        before = [talk.link.has_applied(version) for version in (0, 1, 5)]
        await talk.say(talk.end.ack(update.nonce))
        after = [talk.link.has_applied(version) for version in (0, 1, 5, 6)]
        nursery.cancel_scope.cancel()

    assert before == [False, False, False]
    assert after == [True, True, True, False]


async def test_a_daemon_that_has_much_to_ack_is_told_the_rest_at_once() -> None:
    """And not before: who is slow has enough to do."""
    talk = Conversation()
    async with trio.open_nursery() as nursery:
        first = await talk.begin(nursery)
        talk.owner.publish(2)
        (second,) = await talk.hear()
        for version in (3, 4):
            talk.owner.publish(version)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0.05) as nothing:
            await talk.stream.receive_some()
        assert nothing.cancelled_caught
        assert isinstance(second, Updated)
        await talk.say(talk.end.ack(first.nonce))
        (last,) = await talk.hear()
        assert isinstance(last, Updated)
        for update in (second, last):
            assert not talk.link.has_applied(4)
            await talk.say(talk.end.ack(update.nonce))
        applied = talk.link.has_applied(4)
        nursery.cancel_scope.cancel()

    assert [each.uid for each in last.change.workloads] == ["u4"]
    assert last.change.removed_workloads == ("u2",)
    assert applied


def test_what_is_held_back_is_sent_though_its_time_came_while_we_looked() -> None:
    """An agent's pods take a while to look at; nobody rings for an update that is due by then."""
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def talks() -> list[object]:
        talk = Conversation("agent")
        async with trio.open_nursery() as nursery:
            await talk.begin(nursery)
            talk.owner.looked = lambda: clock.jump(UPDATE_SECONDS)
            talk.owner.publish(2)
            with trio.fail_after(60):
                told = await talk.hear()
            nursery.cancel_scope.cancel()
        return told

    (second,) = trio.run(talks, clock=clock)

    assert isinstance(second, Updated)
    assert [each.uid for each in second.change.workloads] == ["u2"]


async def test_a_slow_daemon_is_told_the_difference_to_now() -> None:
    """Nothing is queued for it: what came and went meanwhile it never hears of."""
    talk = Conversation()
    async with trio.open_nursery() as nursery:
        await talk.begin(nursery)
        talk.owner.publish(2)
        talk.owner.publish(3)
        (update,) = await talk.hear()
        nursery.cancel_scope.cancel()

    assert isinstance(update, Updated)
    assert [each.uid for each in update.change.workloads] == ["u3"]
    assert update.change.removed_workloads == ("u1",)


async def test_nobody_waits_for_ever_for_a_daemon_that_does_not_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A frozen ztunnel must not keep every pod from ending; when it acks again, it counts again."""
    talk = Conversation()
    async with trio.open_nursery() as nursery:
        update = await talk.begin(nursery)

        with caplog.at_level(logging.ERROR), trio.fail_after(5):
            late = await talk.distribution.settled(1, 100)

        assert late == (talk.link.peer,)
        assert "ztunnel/node-1 does not answer" in caplog.text
        await talk.say(talk.end.ack(update.nonce))
        assert await talk.distribution.settled(1, 0) == ()
        assert not talk.link.stuck
        nursery.cancel_scope.cancel()


async def test_an_update_that_cannot_be_applied_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    """It is answered, so nobody waits; the reason shows in status."""
    talk = Conversation()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.link.run)
        await talk.say(talk.end.hello())
        (update,) = await talk.hear()
        assert isinstance(update, Updated)
        await talk.say(talk.end.ack(update.nonce, "no room"))
        await talk.say(talk.end.extra("statistics"))
        nursery.cancel_scope.cancel()

    assert talk.link.error == "no room"
    assert "could not apply an update: no room" in caplog.text


@pytest.mark.parametrize(
    ("crowd", "seconds"), [(1, UPDATE_SECONDS), (4, UPDATE_SECONDS), (8, 0.1), (80, LONGEST_UPDATE_SECONDS)]
)
def test_a_stream_of_updates_goes_out_together(crowd: int, seconds: float) -> None:
    """The first at once; those that follow it within a moment as one. The more daemons, the longer it is."""
    trio.run(_stream_of_updates, crowd, seconds, clock=trio.testing.MockClock(autojump_threshold=0.01))


async def _stream_of_updates(crowd: int, seconds: float) -> None:
    talk = Conversation(crowd=crowd)
    async with trio.open_nursery() as nursery:
        first = await talk.begin(nursery)
        await talk.say(talk.end.ack(first.nonce))
        began = trio.current_time()
        for version in (2, 3, 4):
            talk.owner.publish(version)
        (rest,) = talk.end.receive_data(bytes(await talk.stream.receive_some(65536)))
        assert isinstance(rest, Updated)
        assert trio.current_time() - began == pytest.approx(seconds, abs=0.02)
        assert not talk.link.has_applied(4)
        await talk.say(talk.end.ack(rest.nonce))
        assert talk.link.has_applied(4)
        nursery.cancel_scope.cancel()


async def test_who_is_told_later_is_not_woken_for_every_news() -> None:
    """Its sender wakes when its time has come; a thousand pods that move are not a thousand looks a link."""
    talk = Conversation()
    looks = 0
    look = talk.link._pending

    def counted() -> bytes:
        nonlocal looks
        looks += 1
        return look()

    async with trio.open_nursery() as nursery:
        first = await talk.begin(nursery)
        await talk.say(talk.end.ack(first.nonce))
        talk.link._pending = counted  # type: ignore[method-assign]
        talk.link._quiet_until = trio.current_time() + 3600
        for version in range(2, 12):
            talk.owner.publish(version)
            await trio.testing.wait_all_tasks_blocked()
        assert looks == 1
        talk.link.say("statistics")
        await trio.testing.wait_all_tasks_blocked()
        assert looks == 3
        nursery.cancel_scope.cancel()


def test_a_difference_is_worked_out_once() -> None:
    """For every link that was told the same."""
    one, two = (
        Registry(version=n, workloads={f"u{n}": Workload(uid=f"u{n}", name="n", namespace="s")})
        for n in (1, 2)
    )
    differences = Differences()

    assert differences.between(one, two) is differences.between(one, two)
    assert differences.between(one, two) == change_between(one, two)
    assert differences.between(None, two) == change_between(None, two)
    assert differences.between(None, one) == change_between(None, one)
