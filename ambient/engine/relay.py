"""Two channels joined: what one delivers, the other is given, and an end of file stays one-sided.

Floor 2. Back-pressure is end to end: a side that cannot be written pauses the side that delivers, until
its ``write_ready``. Between a plain socket and a tunnel stream the bytes skip the general way: the
stream reads from the socket into its own frame buffer, and what comes out of the tunnel goes to the
socket by one ``sendmsg`` (``SocketChannel.set_pump``, ``TunnelStream.set_sink``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from ambient.engine.channel import Channel, SocketChannel
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


class _End:
    """One side: receives what its channel delivers and gives it to the other channel."""

    __slots__ = ("channel", "closed", "first_byte", "other", "relay")

    def __init__(self, relay: Relay, channel: Channel, other: Channel) -> None:
        self.relay = relay
        self.channel = channel
        self.other = other
        self.closed = False
        self.first_byte = channel.bytes_in

    def data_received(self, data: memoryview) -> None:
        other = self.other
        other.write(data)
        if not other.writable:
            self.channel.pause()

    def eof_received(self) -> None:
        self.other.write_eof()

    def write_ready(self) -> None:
        self.other.resume()

    def channel_closed(self, exc: Exception | None) -> None:
        self.closed = True
        relay = self.relay
        if exc is not None and relay._error is None:
            relay._error = exc
        other = relay._b if relay._a is self else relay._a
        if other.closed:
            a, b = relay._a, relay._b
            sent, answered = a.channel.bytes_in - a.first_byte, b.channel.bytes_in - b.first_byte
            on_done = relay._on_done
            # Or all of them would keep each other alive, and what they hold, until somebody collects them.
            del a.relay, b.relay, relay._on_done
            on_done(RelayCounts(sent, answered, relay._error))
        elif relay._error is not None:
            other.channel.abort()
        else:
            # Both directions of this side ended well: so will the other's, once flushed.
            other.channel.close()


class Relay:
    """A running relay; made by ``relay``."""

    __slots__ = ("_a", "_b", "_error", "_on_done")

    def __init__(self, a: Channel, b: Channel, on_done: Callable[[RelayCounts], None]) -> None:
        self._a = _End(self, a, b)
        self._b = _End(self, b, a)
        self._error: Exception | None = None
        self._on_done = on_done

    def abort(self, reason: Exception) -> None:
        """End both channels now; ``on_done`` gets *reason*."""
        self._error = self._error or reason
        self._a.channel.abort()
        self._b.channel.abort()

    def counts(self) -> tuple[int, int]:
        """(a_to_b, b_to_a) so far."""
        a, b = self._a, self._b
        return a.channel.bytes_in - a.first_byte, b.channel.bytes_in - b.first_byte

    def _start(self) -> None:
        a, b = self._a, self._b
        for this, that in ((a.channel, b.channel), (b.channel, a.channel)):
            if type(this) is SocketChannel and isinstance(that, TunnelStream):
                this.bound_kernel()
                this.set_pump(that.pump)
                that.set_sink(this)
        a.channel.start(a)
        b.channel.start(b)


def relay(reactor: Reactor, a: Channel, b: Channel, on_done: Callable[[RelayCounts], None]) -> Relay:
    """Join two channels that were not started; *on_done* is called once, when both are closed."""
    running = Relay(a, b, on_done)
    running._start()
    return running
