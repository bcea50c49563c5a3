"""Our certificates: fetched when first needed, renewed at half their life, never on disk.

Floor 2, under trio; keys are made here and leave only into a TLS context.
"""

from __future__ import annotations

from collections.abc import Callable

from ambient.engine.follow import Follow
from ambient.engine.tls import ALPN_HBONE, Svid, TlsContext
from ambient.model.identity import SpiffeId


class SvidCache:
    """SVIDs by identity::

    cache = SvidCache(follow)
    nursery.start_soon(cache.run)      # fetches and renews
    svid = await cache.get(identity)
    """

    def __init__(self, follow: Follow) -> None:
        raise NotImplementedError

    async def run(self) -> None:
        """Renew at half-life, retry with back-off, until cancelled."""
        raise NotImplementedError

    async def get(self, identity: SpiffeId) -> Svid:
        """The current SVID, fetched if need be; kept fresh from then on until ``forget``.

        Raises:
            Unavailable: control refused it; its reason is the message.
        """
        raise NotImplementedError

    def context_nowait(
        self, identity: SpiffeId, *, server: bool, alpn: tuple[str, ...] = ALPN_HBONE
    ) -> TlsContext:
        """The current TLS context for a new connection; cheap, shared until the SVID changes.

        Raises:
            Unavailable: no valid SVID (never fetched, or expired while control was away).
        """
        raise NotImplementedError

    def forget(self, identity: SpiffeId) -> None:
        """Drop the SVID and its key, and renew no more."""
        raise NotImplementedError

    def statistics(self) -> dict[str, dict[str, float]]:
        """identity -> {not_before, not_after}; no key material."""
        raise NotImplementedError


OnRenewed = Callable[[SpiffeId], None]
