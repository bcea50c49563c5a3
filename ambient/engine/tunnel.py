"""HBONE connections: many byte streams inside one mutual-TLS connection.

Floor 2: carries ``ambient.wire.hbone`` over a ``TlsChannel``; every ``TunnelStream`` is a ``Channel``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from ambient.engine.channel import Channel, Data, Receiver
from ambient.engine.reactor import Reactor
from ambient.engine.tls import TlsChannel
from ambient.errors import AmbientError
from ambient.model.identity import SpiffeId

# The answer to a CONNECT includes the destination's dial, whose own deadline is the same (SEAMS: 10 s).
CONNECT_DEADLINE = 10.0
# An accepted connection without a first CONNECT is cut (reference/threats.md 4).
FIRST_REQUEST_DEADLINE = 10.0
# A silent peer is asked, and cut if it does not answer (reference/threats.md 4: noticed within 15 s).
PING_INTERVAL = 10.0
PING_TIMEOUT = 5.0

Headers: TypeAlias = tuple[tuple[str, str], ...]


class TunnelRefused(AmbientError):
    """The peer answered a CONNECT with *status*; it is healthy and said no."""

    def __init__(self, status: int, headers: Headers = ()) -> None:
        super().__init__(f"http status: {status}")
        self.status = status
        self.headers = headers


class TunnelLost(AmbientError):
    """The connection or the stream ended without an answer.

    Attributes:
        retryable: The peer has certainly not acted on the request (GOAWAY, REFUSED_STREAM, or the
            connection was found dead).
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class TunnelStream:
    """One CONNECT: a ``Channel`` once it is open (client) or accepted (server).

    Attributes:
        connection: The tunnel that carries it.
        authority: Its ``:authority``.
        headers: What the peer sent with the answer (client) or the request (server), pseudo-headers left out.
    """

    connection: TunnelConnection
    authority: str
    headers: Headers
    bytes_in: int
    bytes_out: int


class TunnelRequest:
    """A CONNECT that arrived; exactly one of ``accept`` and ``refuse`` must be called, any time later.

    Bytes the peer sends before the answer are held (at most the first window) and dropped on a refusal.

    Attributes:
        authority: ``:authority`` as sent, not yet parsed.
        headers: The rest, in order.
        closed: The peer has given up meanwhile; both answers are then ignored.
    """

    connection: TunnelConnection
    authority: str
    headers: Headers
    closed: bool

    def accept(self, headers: Headers = ()) -> TunnelStream:
        """Answer 200 and return the open stream; call its ``start``."""
        raise NotImplementedError

    def refuse(self, status: int, text: str = "") -> None:
        """Answer *status* with *text* as a short body, and end the stream."""
        raise NotImplementedError

    def on_cancelled(self, callback: Callable[[], None]) -> None:
        """Call *callback* if the peer resets the stream (or the connection ends) before the answer."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class TunnelStatistics:
    """One connection, now and since its start."""

    streams: int
    streams_total: int
    bytes_in: int
    bytes_out: int


OnOpened: TypeAlias = Callable[["TunnelStream | Exception"], None]
OnRequest: TypeAlias = Callable[[TunnelRequest], None]


class TunnelConnection:
    """One HBONE connection, either role; starts speaking when constructed.

    Args:
        channel: Shaken hands, not started.
        on_request: Server role: called for each CONNECT. None: client role.
        on_closed: Called once, when the connection has ended and all its streams have been told;
            None means properly.
        on_available: Client role: a stream ended, or the peer allows more; there is room for another.

    Attributes:
        peer_identity: From the peer's certificate; identity of every stream.
    """

    peer_identity: SpiffeId

    def __init__(
        self,
        reactor: Reactor,
        channel: TlsChannel,
        *,
        on_request: OnRequest | None = None,
        on_closed: Callable[[Exception | None], None] | None = None,
        on_available: Callable[[], None] | None = None,
    ) -> None:
        raise NotImplementedError

    def open_stream(
        self, authority: str, headers: Headers, on_opened: OnOpened, *, deadline: float = CONNECT_DEADLINE
    ) -> None:
        """CONNECT to *authority* (``"10.244.1.3:80"``); *on_opened* gets the stream at 200, else
        ``TunnelRefused``, ``TunnelLost`` or ``TimeoutError``. Never calls back before it returns."""
        raise NotImplementedError

    @property
    def usable(self) -> bool:
        """Whether ``open_stream`` may be called: alive, no GOAWAY, room under the peer's limit."""
        raise NotImplementedError

    def goaway(self) -> None:
        """Accept no more streams; those that live go on, and the last one closes the connection."""
        raise NotImplementedError

    def close(self) -> None:
        """End every stream and the connection now."""
        raise NotImplementedError

    def statistics(self) -> TunnelStatistics:
        """What it carries."""
        raise NotImplementedError
