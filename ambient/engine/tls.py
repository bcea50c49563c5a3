"""Mutual TLS with SPIFFE identities, as a channel over a non-blocking socket.

Floor 2.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from ambient.engine.channel import Channel, Data, Receiver
from ambient.engine.reactor import Reactor
from ambient.errors import AmbientError
from ambient.model.identity import SpiffeId

# A peer that has not finished its handshake by then is cut (reference/threats.md 4).
TLS_HANDSHAKE_DEADLINE = 5.0
# A host that vanished without a word is noticed after this many milliseconds (reference/threats.md 4).
TCP_USER_TIMEOUT_MS = 15_000
ALPN_HBONE = ("h2",)


class TlsError(AmbientError):
    """A handshake failed, or the peer is not who it must be; ``reason`` is a stable word for records.

    Args:
        reason: ``not_tls``, ``no_certificate``, ``bad_certificate``, ``no_svid``, ``multiple_svids``, ``foreign_trust_domain``,
            ``wrong_identity``, ``no_alpn``, ``deadline``, ``closed`` or ``protocol``.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Svid:
    """A certificate that proves *identity*, with its key; the key shows in no repr.

    Attributes:
        chain: DER, leaf first.
        key: The private key, PKCS#8 PEM.
        roots: DER of the trust domain's roots.
        not_before: Unix seconds of the leaf.
        not_after: Unix seconds of the leaf.
    """

    identity: SpiffeId
    chain: tuple[bytes, ...] = field(repr=False)
    key: bytes = field(repr=False)
    roots: tuple[bytes, ...] = field(repr=False)
    not_before: float
    not_after: float


class TlsContext:
    """What a side of a handshake needs; made once per SVID and shared by its connections.

    Args:
        svid: Our identity; its roots judge the peer, its trust domain must be the peer's.
        server: Which side.
        alpn: Protocols offered or accepted; the handshake fails without an agreement.
    """

    def __init__(self, svid: Svid, *, server: bool, alpn: tuple[str, ...] = ALPN_HBONE) -> None:
        raise NotImplementedError


class TlsChannel:
    """A ``Channel`` whose bytes are encrypted; exists only after a verified handshake.

    Attributes:
        peer_identity: Who is at the other end, from its certificate.
        identity: Who we are.
        alpn: The protocol agreed on.
    """

    peer_identity: SpiffeId
    identity: SpiffeId
    alpn: str
    bytes_in: int
    bytes_out: int


TlsDone: TypeAlias = Callable[["TlsChannel | Exception"], None]


def accept_tls(
    reactor: Reactor,
    sock: socket.socket,
    context: TlsContext,
    on_done: TlsDone,
    *,
    deadline: float = TLS_HANDSHAKE_DEADLINE,
) -> None:
    """Shake hands as the server; *sock* (connected, non-blocking) becomes the channel's to close.

    *on_done* gets a ``TlsChannel`` whose peer showed exactly one SPIFFE URI SAN of our trust domain,
    or a ``TlsError`` / ``OSError``, and the socket is closed.
    """
    raise NotImplementedError


def connect_tls(
    reactor: Reactor,
    sock: socket.socket,
    context: TlsContext,
    expected: frozenset[SpiffeId],
    on_done: TlsDone,
    *,
    deadline: float = TLS_HANDSHAKE_DEADLINE,
) -> None:
    """Shake hands as the client; the peer must be one of *expected* (empty: none will do)."""
    raise NotImplementedError
