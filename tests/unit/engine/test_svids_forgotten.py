"""A certificate that is forgotten for one who leaves, while another waits for it."""

from __future__ import annotations

import time

import trio
import trio.testing

from ambient.engine.svids import SvidCache
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
