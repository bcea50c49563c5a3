"""A certificate that is forgotten for one who leaves while another waits for it, or cannot be used."""

from __future__ import annotations

import errno
import os
import time

import pytest
import trio
import trio.testing

from ambient.engine.svids import SvidCache
from ambient.errors import Unavailable
from ambient.model.identity import SpiffeId
from ambient.pki.authority import Authority
from ambient.wire.xds import Certified

WEB = SpiffeId("cluster.local", "shop", "web")


class SlowSigner:
    """Signs, but only when told to."""

    def __init__(self) -> None:
        self.authority = Authority(time.time())
        self.asked = 0
        self.may = trio.Event()

    async def certificate(self, identity: SpiffeId, csr: bytes) -> Certified:
        self.asked += 1
        await self.may.wait()
        issued = self.authority.issue(csr, identity, time.time())
        return Certified(self.asked, issued.chain, issued.roots, issued.not_after)


async def test_enrolling_again_while_the_last_drain_ends_still_gets_a_certificate() -> None:
    """Seen as "no certificate yet" in a namespace that was enrolled and released in quick turn."""
    signer = SlowSigner()
    cache = SvidCache(signer)
    got: list[object] = []

    async def wait() -> None:
        got.append(await cache.get(WEB))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        cache.forget(WEB)
        signer.may.set()
        with trio.fail_after(5):
            while not got:
                await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()

    assert len(got) == 1


async def test_without_a_descriptor_there_is_no_certificate_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who opens a connection can do without one; at an ``OSError`` he would leave others waiting."""
    signer = SlowSigner()
    signer.may.set()
    cache = SvidCache(signer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        with trio.fail_after(5):
            await cache.get(WEB)

        def none_left(name: str, flags: int = 0) -> int:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(os, "memfd_create", none_left)
            with pytest.raises(Unavailable, match=r"cannot be used: .*Too many open files"):
                cache.context_nowait(WEB, server=False)
        assert cache.context_nowait(WEB, server=False).identity == WEB
        nursery.cancel_scope.cancel()
