"""Two channels joined: what one delivers, the other is given, and an end of file stays one-sided.

Floor 2. Back-pressure is end to end: a side that cannot be written pauses the side that delivers, until
its ``write_ready``. Between a plain socket and a tunnel stream the bytes skip the general way: the
stream reads from the socket into its own frame buffer, and what comes out of the tunnel goes to the
socket by one ``sendmsg`` (``TunnelStream.splice``).

Whoever has facts of their own about a pair of channels derives from ``Joined``, so that a relayed connection
is one object and not a chain of them; ``relay`` is for everybody else. No cycle of references outlives the
channels: what a connection was made of is free, and warm in the cache for the next one, the moment it ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ambient.engine.channel import Channel, PromptReceiver, SocketChannel
from ambient.engine.reactor import Reactor
from ambient.engine.tunnel import TunnelStream


class RelayCounts(NamedTuple):
    """How a relay ended.

    Attributes:
        a_to_b: Bytes that arrived at *a* and were given to *b*.
        b_to_a: The other way.
        error: None if both directions ended with an end of file.
    """

    a_to_b: int
    b_to_a: int
    error: Exception | None


# Stands for "not joined yet" where the channels that are not closed are counted.
APART = -1


class Joined(PromptReceiver):
    """A pair of channels from ``join`` on: the receiver of what *near* delivers; *far*'s is its ``_Return``.

    A subclass gets ``relayed`` when both are closed.

    Attributes:
        unclosed: How many of the two are not closed; ``APART`` before ``join``, if the subclass says so.
    """

    __slots__ = ("_error", "_far", "_near", "unclosed")

    _near: Channel
    _far: Channel

    def join(self, near: Channel, far: Channel) -> None:
        """Move bytes between two channels that were not started, until both are closed."""
        self._near, self._far = near, far
        self._error: Exception | None = None
        self.unclosed = 2
        if type(near) is SocketChannel:
            near.reset_unless_finished()
            if isinstance(far, TunnelStream):
                far.splice(near)
        if type(far) is SocketChannel:
            far.reset_unless_finished()
            if isinstance(near, TunnelStream):
                near.splice(far)
        near.start(self)
        far.start(_Return(self))

    def relayed(self, sent: int, answered: int, error: Exception | None) -> None:
        """Both channels are closed; the arguments are those of ``RelayCounts``."""
        raise NotImplementedError

    def abort(self, reason: Exception) -> None:
        """End both channels now; ``relayed`` gets *reason*."""
        self._error = self._error or reason
        self._near.abort()
        self._far.abort()

    def counts(self) -> tuple[int, int]:
        """Bytes from near to far and back, so far."""
        return self._near.bytes_in, self._far.bytes_in

    # Near's receiver -----------------------------------------------------------------------------

    def data_received(self, data: memoryview) -> None:
        """Near delivered."""
        far = self._far
        far.write(data)
        if not far.writable:
            self._near.pause()

    def eof_received(self) -> None:
        """Near sends no more."""
        self._far.write_eof()

    def write_ready(self) -> None:
        """Near has room again."""
        self._far.resume()

    def channel_closed(self, exc: Exception | None) -> None:
        """Near is closed."""
        self._closed(self._far, exc)

    def _closed(self, other: Channel, exc: Exception | None) -> None:
        if exc is not None and self._error is None:
            self._error = exc
        self.unclosed -= 1
        if not self.unclosed:
            self.relayed(self._near.bytes_in, self._far.bytes_in, self._error)
        elif self._error is not None:
            other.abort()
        elif not other.ending():
            # Both directions of this side ended well: so will the other's, once flushed.
            other.close()


class _Return(PromptReceiver):
    """Receives what the far channel delivers."""

    __slots__ = ("_joined",)

    def __init__(self, joined: Joined) -> None:
        self._joined = joined

    def data_received(self, data: memoryview) -> None:
        joined = self._joined
        near = joined._near
        near.write(data)
        if not near.writable:
            joined._far.pause()

    def eof_received(self) -> None:
        self._joined._near.write_eof()

    def write_ready(self) -> None:
        self._joined._near.resume()

    def channel_closed(self, exc: Exception | None) -> None:
        joined = self._joined
        joined._closed(joined._near, exc)


class Relay(Joined):
    """A running relay; made by ``relay``."""

    __slots__ = ("_on_done",)

    def __init__(self, on_done: Callable[[RelayCounts], None]) -> None:
        self._on_done: Callable[[RelayCounts], None] | None = on_done

    def relayed(self, sent: int, answered: int, error: Exception | None) -> None:
        """Tell whoever asked for it."""
        on_done, self._on_done = self._on_done, None
        if on_done is not None:
            on_done(RelayCounts(sent, answered, error))


def relay(reactor: Reactor, a: Channel, b: Channel, on_done: Callable[[RelayCounts], None]) -> Relay:
    """Join two channels that were not started; *on_done* is called once, when both are closed."""
    running = Relay(on_done)
    running.join(a, b)
    return running
