"""Many requests under way at one ztunnel, and how long each is waited for."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from ambient.errors import Unavailable
from ambient.redirect.zds_link import ZtunnelLink
from ambient.wire.zds import ZtunnelConnection


class Scene:
    """A link, and the ztunnel at its other end."""

    def __init__(self, link: ZtunnelLink, sock: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        self.link, self.sock, self.nursery = link, sock, nursery
        self.wire = ZtunnelConnection()
        self.answers: dict[str, str] = {}
        self.told = trio.Event()

    async def delete(self, uid: str, deadline: float) -> None:
        try:
            error = await self.link.request(partial(self.link.wire.delete, uid), (), deadline)
        except Unavailable as exc:
            error = str(exc)
        self.answers[uid] = error
        if len(self.answers) == 3:
            self.told.set()

    async def asked(self) -> None:
        self.wire.receive_packet(await self.sock.recv(5000))


@asynccontextmanager
async def scene(starved: Sequence[float] = (0.0,)) -> AsyncIterator[Scene]:
    ours, theirs = (
        trio.socket.from_stdlib_socket(each)
        for each in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    )
    with ours, theirs, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            link = ZtunnelLink(
                ours, lambda _link, _uid: None, lambda _link, _passed: None, lambda _pid: starved[0]
            )
            nursery.start_soon(link.read, nursery.cancel_scope)
            made = Scene(link, theirs, nursery)
            await theirs.send(made.wire.hello())
            await link.greeted.wait()
            yield made
            nursery.cancel_scope.cancel()


async def test_nobody_waits_for_the_answers_of_others_before_it_asks() -> None:
    """250 pods that each take 20 ms to leave take 20 ms, not 5 s."""
    async with scene() as here:
        for uid in "abc":
            here.nursery.start_soon(here.delete, uid, 5.0)
        for _ in "abc":
            await here.asked()
        assert here.answers == {}
        for number in range(3):
            await here.sock.send(here.wire.ack(f"{number}"))
        await here.told.wait()
    assert sorted(here.answers.values()) == ["0", "1", "2"]


async def test_who_asks_behind_a_patient_one_is_as_patient() -> None:
    """Acks come in order: it is not this one's fault that there is none yet."""
    async with scene() as here, trio.open_nursery() as nursery:
        nursery.start_soon(here.delete, "patient", 5.0)
        await here.asked()
        nursery.start_soon(here.delete, "hasty", 0.01)
        await here.asked()
        await trio.sleep(0.1)  # Not luck: ten times as long as it would have waited.
        await here.sock.send(here.wire.ack())
        await here.sock.send(here.wire.ack())
    assert here.answers == {"patient": "", "hasty": ""}


async def test_each_answer_begins_the_wait_anew() -> None:
    """A ztunnel that answers slowly, but answers, is not given up."""
    async with scene() as here, trio.open_nursery() as nursery:
        for uid in "abcde":
            nursery.start_soon(here.delete, uid, 1.0)
            await here.asked()
        for _ in "abcde":
            await trio.sleep(0.3)
            await here.sock.send(here.wire.ack())
    assert set(here.answers.values()) == {""}


async def test_silence_ends_the_connection() -> None:
    """Later acks could not be told apart."""
    async with scene() as here:
        here.nursery.start_soon(here.delete, "a", 0.02)
        await trio.sleep_forever()  # Cancelled by the link.
    assert here.answers == {"a": f"ztunnel {here.link.pid} did not answer within 0.02 s"}


async def test_a_starved_ztunnel_is_waited_for_and_a_frozen_one_is_not() -> None:
    """What it waited for a CPU is not held against it, up to a bound."""
    waited = [0.0]
    async with scene(waited) as here, trio.open_nursery() as nursery:
        nursery.start_soon(here.delete, "starved", 0.05)
        await here.asked()
        waited[0] = 0.4
        await trio.sleep(0.2)  # Not luck: four times its patience.
        assert here.answers == {}
        await here.sock.send(here.wire.ack())

    assert here.answers == {"starved": ""}


async def test_even_a_starved_ztunnel_is_given_up_some_time() -> None:
    waited = [0.0]
    async with scene(waited) as here, trio.open_nursery() as nursery:
        nursery.start_soon(here.delete, "starved", 0.02)
        await here.asked()
        waited[0] = 1000.0

    assert "did not answer" in here.answers["starved"]
