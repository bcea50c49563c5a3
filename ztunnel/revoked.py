"""Tunnels whose peer's certificate is taken back while they are open: they end, as new ones do not begin.

The reason in the records is that of a refused handshake.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import trio

from ambient.engine.reactor import Reactor
from ambient.engine.slices import in_slices
from ambient.engine.tls import TlsChannel, TlsError
from ambient.engine.tunnel import TunnelConnection

if TYPE_CHECKING:
    from ambient.engine.revocations import Revocations

log = logging.getLogger("ztunnel")


async def watch_revocations(reactor: Reactor, tunnels: Callable[[], Iterator[TunnelConnection]]) -> None:
    """Whenever the lists of *reactor* change, end those of the open *tunnels* that they concern.

    Until cancelled; at once if it keeps none.

    Args:
        tunnels: All of them, asked for at each change.
    """
    lists = reactor.revocations
    if lists is None:
        return
    seen = 0
    while True:
        lists.look()
        if lists.version != seen:
            seen = lists.version
            ended: list[TlsError] = []
            await in_slices(_end_revoked(lists, tunnels(), ended), reactor)
            if ended:
                log.warning(
                    "%d open tunnels ended: %s", len(ended), "; ".join(sorted({*map(str, ended)})[:10])
                )
        await trio.sleep(lists.every)


def _end_revoked(
    lists: Revocations, tunnels: Iterable[TunnelConnection], ended: list[TlsError]
) -> Iterator[None]:
    for tunnel in tunnels:
        channel = tunnel.channel
        if isinstance(channel, TlsChannel) and not tunnel.closed:
            leaf, roots = channel.peer_proof()
            if lists.is_revoked(leaf, roots):
                exc = TlsError("revoked", f"the certificate of {channel.peer_identity} was revoked")
                ended.append(exc)
                tunnel.crashed(exc)
        yield
