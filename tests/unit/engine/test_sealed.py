"""Keys that another process holds for us: unchangeable, checked, and shown to nobody."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace

import msgpack
import pytest
import trio
import trio.testing

from ambient.engine.sealed import MAX_SEALED_BYTES, is_sealed, seal, seal_svid, unseal_svid
from ambient.engine.svids import SvidCache
from ambient.engine.tls import Svid, TlsContext
from ambient.errors import RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.pki.authority import Authority
from ambient.pki.request import new_request
from ambient.pki.svid import X509Svid
from ambient.wire.xds import Certified

WEB = SpiffeId("cluster.local", "shop", "web")


def make_svid(identity: SpiffeId = WEB) -> Svid:
    authority = Authority(time.time())
    key, request = new_request(identity)
    issued = authority.issue(request, identity, time.time())
    made = X509Svid.assemble(identity, key, issued.chain, issued.roots)
    return Svid(identity, made.chain, made.key_pem(), made.roots, made.not_before, made.not_after)


def test_an_svid_comes_back_as_it_was() -> None:
    """Good enough to shake hands with."""
    svid = make_svid()
    fd = seal_svid(svid)
    try:
        assert unseal_svid(fd) == svid
        assert unseal_svid(fd) == svid, "the position of the descriptor does not matter"
        TlsContext(unseal_svid(fd), server=True)
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


def test_what_is_sealed_cannot_be_changed() -> None:
    """Whoever holds it, or has held it."""
    fd = seal(b"secret")
    try:
        assert is_sealed(fd)
        with pytest.raises(PermissionError):
            os.pwrite(fd, b"S", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(fd, 100)
    finally:
        os.close(fd)


def test_what_is_not_sealed_is_refused() -> None:
    """Its writer could change it after the check."""
    plain = os.memfd_create("plain", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    null = os.open("/dev/null", os.O_RDONLY)
    large = seal(b"x" * (MAX_SEALED_BYTES + 1))
    try:
        for fd in (plain, null, large):
            assert not is_sealed(fd)
            with pytest.raises(RemoteProtocolError, match="not a sealed"):
                unseal_svid(fd)
    finally:
        for fd in (plain, null, large):
            os.close(fd)


def frame(**changes: object) -> bytes:
    svid = make_svid()
    fields: dict[str, object] = {
        "identity": str(svid.identity),
        "chain": list(svid.chain),
        "key": svid.key,
        "roots": list(svid.roots),
    }
    packed: bytes = msgpack.packb(fields | changes)
    return packed


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PRIVATE",
        frame(key=make_svid().key),
        frame(key=b"-----BEGIN PRIVATE KEY-----"),
        frame(identity=str(replace(WEB, service_account="api"))),
        frame(chain=[]),
        frame(roots=[7]),
        frame(identity=7),
    ],
    ids=[
        "empty",
        "no-map",
        "another-key",
        "half-a-key",
        "another-name",
        "no-chain",
        "root-no-bytes",
        "no-name",
    ],
)
def test_parts_that_do_not_belong_together_are_refused(data: bytes) -> None:
    """And the reason shows nothing of them."""
    fd = seal(data)
    try:
        with pytest.raises(RemoteProtocolError) as caught:
            unseal_svid(fd)
        assert "PRIVATE" not in str(caught.value)
        assert caught.value.__cause__ is None
    finally:
        os.close(fd)


class Signer:
    """Signs, and counts."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.asked = 0
        self.clock = clock
        self.authority = Authority(time.time())

    async def certificate(self, identity: SpiffeId, csr: bytes) -> Certified:
        self.asked += 1
        issued = self.authority.issue(csr, identity, self.clock())
        return Certified(self.asked, issued.chain, issued.roots, issued.not_after)


def test_an_inherited_svid_is_used_at_once_and_renewed_at_its_time() -> None:
    """Nobody need sign for a process that follows another."""

    async def main() -> None:
        now, began = time.time(), trio.current_time()
        signer = Signer(lambda: now + trio.current_time() - began)
        cache = SvidCache(signer, clock=signer.clock)
        svid = make_svid()
        cache.inherit(svid)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.run)
            assert await cache.get(WEB) == svid
            assert cache.held(WEB) == svid
            assert signer.asked == 0

            await trio.sleep((svid.not_after - svid.not_before) * 0.75)

            assert signer.asked == 1
            assert cache.held(WEB) != svid
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


async def test_our_own_certificate_wins_and_an_expired_one_is_no_use() -> None:
    """What is handed over may be older than what we have."""
    signer = Signer()
    cache = SvidCache(signer)
    svid = make_svid()
    cache.inherit(replace(svid, not_after=time.time() - 1))
    assert cache.held(WEB) is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cache.run)
        mine = await cache.get(WEB)
        cache.inherit(svid)
        assert cache.held(WEB) == mine
        nursery.cancel_scope.cancel()
