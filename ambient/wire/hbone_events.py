"""What an HBONE connection reports, and the record of one stream.

Floor 1. What is made for every batch of bytes or for every stream is slotted and mutable, as freezing costs
more than all the rest of it; the others are rare and frozen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

from ambient.wire.hbone_headers import Headers


@dataclass(slots=True)
class Rejection:
    """What a request gets that is not for us, and how much of its body came.

    Attributes:
        length: Its content-length; None: not declared, or not counted.
    """

    status: int
    reason: str
    length: int | None
    received: int = 0

    def is_wrong(self, *, ended: bool) -> bool:
        """Whether the body cannot be the one that was declared (RFC 9113 8.1.1)."""
        if self.length is None:
            return False
        return self.received != self.length if ended else self.received > self.length


class Stream:
    """One CONNECT on the wire; whoever carries its bytes has a subclass of their own made in its place.

    Attributes:
        send_window: What the peer lets us send on it; may be negative after a SETTINGS.
        receive_window: What the peer may still send.
        window: How wide ``receive_window`` is when nothing is outstanding; grows.
        unreturned: Consumed bytes not yet given back to the peer.
        drained: Consumed bytes since the window grew last.
        answered: 200 was sent (server) or received (client).
        rejection: The answer that a request of another method gets when it is whole (server).
        tail: Body of a refusal that waits for the peer's window.
    """

    __slots__ = (
        "answered",
        "drained",
        "local_closed",
        "receive_window",
        "rejection",
        "remote_closed",
        "send_window",
        "stream_id",
        "tail",
        "unreturned",
        "window",
    )

    def __init__(self, stream_id: int, send_window: int, window: int) -> None:
        self.stream_id = stream_id
        self.send_window = send_window
        self.receive_window = window
        self.window = window
        self.unreturned = 0
        self.drained = 0
        self.answered = False
        self.local_closed = False
        self.remote_closed = False
        self.tail = b""
        self.rejection: Rejection | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.stream_id}>"


# A ``Stream``, of the type that the connection was told to make.
AnyStream: TypeAlias = Any


@dataclass(slots=True)
class RequestReceived:
    """A well-formed CONNECT; answer with ``accept`` or ``refuse``."""

    stream: AnyStream
    authority: str
    headers: Headers


@dataclass(frozen=True, slots=True)
class RequestRejected:
    """A request is answered *status* here, because no HBONE peer sends such a one.

    Attributes:
        stream: Whose answer may wait for the rest of the request (``answer_rejected``); None: gone already.
        status: 0: reset, without an answer.
    """

    stream: AnyStream | None
    status: int
    reason: str


@dataclass(slots=True)
class ResponseReceived:
    """The final answer to our CONNECT; any status but 2xx has already closed the stream."""

    stream: AnyStream
    status: int
    headers: Headers


@dataclass(slots=True)
class DataReceived:
    """Bytes of one stream; *parts* are slices of the input and last as long as it does."""

    stream: AnyStream
    parts: list[memoryview]
    total: int


@dataclass(slots=True)
class StreamEnded:
    """The peer sends no more on this stream; we may."""

    stream: AnyStream


@dataclass(frozen=True, slots=True)
class StreamReset:
    """The stream is gone in both directions, by the peer's RST_STREAM or for its fault.

    Attributes:
        unprocessed: The peer has certainly not acted on the request.
    """

    stream: AnyStream
    code: int
    unprocessed: bool
    reason: str


@dataclass(slots=True)
class WindowOpened:
    """More may be sent: on *stream*, or on the whole connection if it is None."""

    stream: AnyStream | None


@dataclass(frozen=True, slots=True)
class SettingsReceived:
    """The peer's limits changed; see the connection's ``peer_`` attributes."""


@dataclass(frozen=True, slots=True)
class PingAcknowledged:
    """The answer to ``ping``."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class GoawayReceived:
    """The peer takes no more streams; those above *last_stream_id* were reset as unprocessed."""

    last_stream_id: int
    code: int
    debug: bytes


Event: TypeAlias = (
    RequestReceived
    | RequestRejected
    | ResponseReceived
    | DataReceived
    | StreamEnded
    | StreamReset
    | WindowOpened
    | SettingsReceived
    | PingAcknowledged
    | GoawayReceived
)
