"""Our certificates: fetched when first needed, renewed at half their life, never on disk.

Floor 2, under trio. Keys are made here and leave only into a TLS context. A certificate that cannot be
renewed is used until its last second; callers of an identity that has none hear why at once, while
the next attempt waits its turn (``ambient.pki.rotation_plan`` says when).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Protocol

import trio

from ambient.engine.tls import ALPN_HBONE, Svid, TlsContext
from ambient.errors import AmbientError, ConfigError, Unavailable
from ambient.model.identity import SpiffeId
from ambient.pki.request import new_request
from ambient.pki.rotation_plan import is_usable, renewal_delay, retry_delay
from ambient.pki.svid import X509Svid
from ambient.wire.xds import Certified

# A certificate whose half-life has passed already (a clock that jumped) must not be renewed in a loop.
LEAST_RENEWAL_DELAY = 1.0


class Signer(Protocol):
    """Whoever has a CSR signed: ``Follow`` in a daemon."""

    async def certificate(self, identity: SpiffeId, csr: bytes) -> Certified:
        """Have *csr* (DER) signed, or raise ``Unavailable``."""
        ...


class SvidCache:
    """SVIDs by identity::

        cache = SvidCache(follow)
        nursery.start_soon(cache.run)      # fetches and renews
        svid = await cache.get(identity)

    Attributes:
        on_renewed: Called with an identity whenever it got a new SVID.
    """

    def __init__(self, signer: Signer, *, clock: Callable[[], float] = time.time) -> None:
        self.on_renewed: Callable[[SpiffeId], None] | None = None
        self._signer = signer
        self._clock = clock
        self._entries: dict[SpiffeId, _Entry] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Fetch and renew until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for identity, entry in self._entries.items():
                    nursery.start_soon(self._keep, identity, entry)
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def get(self, identity: SpiffeId) -> Svid:
        """The current SVID, fetched if need be; kept fresh from then on until ``forget``.

        Raises:
            Unavailable: there is none; the message says why.
        """
        entry = self._entries.get(identity)
        if entry is None:
            entry = self._entries[identity] = _Entry()
            if self._nursery is not None:
                self._nursery.start_soon(self._keep, identity, entry)
        await entry.tried.wait()
        if self._entries.get(identity) is not entry:
            return await self.get(identity)  # Forgotten for somebody who left; we have just come.
        return self._valid(identity, entry)

    def inherit(self, svid: Svid) -> None:
        """Take over *svid* from an earlier process, to be renewed at its time; ours, if we have one, wins.

        An SVID that has expired is not worth keeping; without effect then.
        """
        known = self._entries.get(svid.identity)
        if known is not None or not is_usable(svid.not_before, svid.not_after, self._clock()):
            return
        entry = self._entries[svid.identity] = _Entry()
        entry.svid = svid
        entry.tried.set()
        if self._nursery is not None:
            self._nursery.start_soon(self._keep, svid.identity, entry)

    def held(self, identity: SpiffeId) -> Svid | None:
        """The SVID, key included, for whoever is to hold it over our end; None if there is none."""
        entry = self._entries.get(identity)
        return entry.svid if entry is not None else None

    def context_nowait(
        self, identity: SpiffeId, *, server: bool, alpn: tuple[str, ...] = ALPN_HBONE
    ) -> TlsContext:
        """The current TLS context for a new connection; cheap, shared until the SVID changes.

        Raises:
            Unavailable: no valid SVID (never fetched, refused, or expired while control was away), or one
                that cannot be used now.
        """
        entry = self._entries.get(identity)
        if entry is None:
            raise Unavailable(f"no certificate for {identity}: it was never asked for")
        svid = self._valid(identity, entry)
        context = entry.contexts.get((server, alpn))
        if context is None:
            try:
                context = TlsContext(svid, server=server, alpn=alpn)
            except (ConfigError, OSError) as exc:
                # It takes descriptors, of which there may be none left just now.
                raise Unavailable(f"the certificate of {identity} cannot be used: {exc}") from exc
            entry.contexts[server, alpn] = context
        return context

    def forget(self, identity: SpiffeId) -> None:
        """Drop the SVID and its key, and renew no more; without effect for a stranger."""
        entry = self._entries.pop(identity, None)
        if entry is not None:
            entry.scope.cancel()
            entry.svid = None
            entry.contexts.clear()
            entry.tried.set()

    def statistics(self) -> dict[str, dict[str, float]]:
        """identity -> {not_before, not_after}; no key material."""
        return {
            str(identity): {"not_before": entry.svid.not_before, "not_after": entry.svid.not_after}
            for identity, entry in self._entries.items()
            if entry.svid is not None
        }

    def certificates(self) -> dict[str, tuple[tuple[bytes, ...], tuple[bytes, ...], str]]:
        """identity -> its chain and its roots in DER, and why there is no newer one ("" if all is well)."""
        return {
            str(identity): (
                entry.svid.chain if entry.svid is not None else (),
                entry.svid.roots if entry.svid is not None else (),
                entry.error,
            )
            for identity, entry in self._entries.items()
        }

    def _valid(self, identity: SpiffeId, entry: _Entry) -> Svid:
        svid = entry.svid
        if svid is None:
            raise Unavailable(entry.error or f"no certificate for {identity} yet")
        if not is_usable(svid.not_before, svid.not_after, self._clock()):
            raise Unavailable(f"the certificate of {identity} has expired: {entry.error or 'not renewed'}")
        return svid

    async def _keep(self, identity: SpiffeId, entry: _Entry) -> None:
        failures = 0
        with entry.scope:
            if entry.svid is not None:
                await trio.sleep(self._renewal_delay(entry.svid))
            while True:
                try:
                    svid = await self._fetch(identity)
                except AmbientError as exc:
                    failures += 1
                    entry.error = str(exc)
                    delay = retry_delay(failures, random.random())
                else:
                    failures = 0
                    delay = self._renewed(identity, entry, svid)
                entry.tried.set()
                await trio.sleep(delay)

    async def _fetch(self, identity: SpiffeId) -> Svid:
        key, request = new_request(identity)
        certified = await self._signer.certificate(identity, request)
        made = X509Svid.assemble(identity, key, certified.chain, certified.roots)
        return Svid(identity, made.chain, made.key_pem(), made.roots, made.not_before, made.not_after)

    def _renewed(self, identity: SpiffeId, entry: _Entry, svid: Svid) -> float:
        entry.svid = svid
        entry.error = ""
        entry.contexts.clear()
        if self.on_renewed is not None:
            self.on_renewed(identity)
        return self._renewal_delay(svid)

    def _renewal_delay(self, svid: Svid) -> float:
        return max(LEAST_RENEWAL_DELAY, renewal_delay(svid.not_before, svid.not_after, self._clock()))


class _Entry:
    """What is known about one identity."""

    __slots__ = ("contexts", "error", "scope", "svid", "tried")

    def __init__(self) -> None:
        self.svid: Svid | None = None
        self.error = ""
        self.contexts: dict[tuple[bool, tuple[str, ...]], TlsContext] = {}
        self.tried = trio.Event()  # The first attempt has ended, one way or the other.
        self.scope = trio.CancelScope()
