"""One stream of an HBONE connection as a channel, and the request it begins with.

Floor 2. The fast path to a plain socket (``splice``) is why this file counts its copies:
a byte from the socket is read into the frame buffer and encrypted from there; a byte from the tunnel is
decrypted into the shared buffer and sent from there.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from ambient.engine.channel import NOTHING, PUMP_BLOCKED, Data, Receiver, SocketChannel, tell_closed
from ambient.engine.reactor import SLOT_BYTES, SLOTS
from ambient.errors import AmbientError
from ambient.own_code import own_code
from ambient.wire.hbone_events import Stream
from ambient.wire.hbone_frames import FRAME_HEADER_BYTES, ErrorCode, pack_data_header

if TYPE_CHECKING:
    from ambient.engine.tunnel import TunnelConnection

Headers: TypeAlias = tuple[tuple[str, str], ...]

_SLOT_PAYLOAD_BYTES = SLOT_BYTES - FRAME_HEADER_BYTES
# Where the peer takes frames of this size, a read becomes one frame; below, one for each TLS record.
_LARGE_FRAME_BYTES = SLOTS * SLOT_BYTES


class TunnelRefused(AmbientError):
    """The peer answered a CONNECT with *status*; it is healthy and said no."""

    def __init__(self, status: int, headers: Headers = ()) -> None:
        super().__init__(f"http status: {status}")
        self.status = status
        self.headers = headers


class TunnelLost(AmbientError):
    """The connection or the stream ended without an answer.

    Attributes:
        retryable: Trying again on another connection does no harm: the request was not answered.
        unprocessed: The peer says that it did nothing about it, and would take it elsewhere (RFC 9113 8.7).
    """

    def __init__(self, message: str, *, retryable: bool = False, unprocessed: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.unprocessed = unprocessed


class TunnelStream(Stream):
    """One CONNECT: a ``Channel`` once it is open (client) or accepted (server).

    It is the wire's own record of the stream too: of what there are thousands there is one object.

    Attributes:
        connection: The tunnel that carries it.
        live: It was announced, and has not ended.
        authority: Its ``:authority``.
        headers: What the peer sent with the answer (client) or the request (server), pseudo-headers
            left out.
        on_finished: The pool's: called once, when the stream has ended.
    """

    __slots__ = (
        "_bulk", "_closing", "_eof_delivered", "_eof_held", "_eof_wanted", "_held", "_out", "_out_bytes",
        "_owed", "_paused", "_reason", "_receiver", "_sink", "_wants_room", "authority", "bytes_in",
        "bytes_out", "connection", "headers", "live", "on_finished",
    )  # fmt: skip

    connection: TunnelConnection

    def __init__(self, stream_id: int, send_window: int, window: int) -> None:
        super().__init__(stream_id, send_window, window)
        self.live = False
        self.authority = ""
        self.headers: Headers = ()
        self.on_finished: Callable[[], None] | None = None
        self._receiver: Receiver | None = None
        self._sink: SocketChannel | None = None
        self._held = NOTHING  # What came while paused, at most the stream's window.
        self._owed = 0  # Delivered or held, and not yet given back to the peer.
        self._eof_held = False
        self._eof_delivered = False
        self._paused = False
        self._out = NOTHING
        self._out_bytes = 0
        self._eof_wanted = False
        self._wants_room = False
        self._closing = False
        self._bulk = False
        self._reason: Exception | None = None
        self.bytes_in = 0
        self.bytes_out = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.authority}, {self.bytes_in} in, {self.bytes_out} out>"

    def begin(self, connection: TunnelConnection, authority: str, headers: Headers) -> None:
        """It is announced: from now on its owner hears of all that becomes of it."""
        self.connection = connection
        self.authority = authority
        self.headers = headers
        self.live = True

    # Channel -----------------------------------------------------------------------------------

    @property
    def peer_address(self) -> tuple[str, int]:
        """(ip, port) of the connection's other end."""
        return self.connection.peer_address

    @property
    def local_address(self) -> tuple[str, int]:
        """(ip, port) of the connection's own end."""
        return self.connection.local_address

    @property
    def writable(self) -> bool:
        """False while the peer's window, or the connection, has no room."""
        if not self.live:
            return True  # What is written is dropped.
        if not self._out and self.connection.channel.writable and self._sendable() > 0:
            return True
        self._wants_room = True
        self.connection.wait_for_room(self)
        return False

    def ending(self) -> bool:
        """Whether both directions have ended and all is sent."""
        return self._eof_delivered and self._eof_wanted and not self._out

    def start(self, receiver: Receiver) -> None:
        """Deliver to *receiver* from now on."""
        if not self.live:
            self.connection.reactor.call_soon(partial(receiver.channel_closed, self._reason), _recorded)
            return
        self._receiver = receiver
        if self._held or self._eof_held:
            self.connection.reactor.call_soon(self._deliver_held, self.crashed)

    def write(self, data: Data) -> None:
        """Send all of *data*, now or as the peer's window allows."""
        size = len(data)
        if not self.live or self._eof_wanted or not size:
            return
        self.bytes_out += size
        sent = 0 if self._out else self.connection.send_data(self, data)
        if sent < size and self.live:
            if self._out is NOTHING:
                self._out = deque()
            self._out.append(bytes(data[sent:]))
            self._out_bytes += size - sent
            self.connection.wait_for_room(self)

    def write_eof(self) -> None:
        """Send END_STREAM after what was written."""
        if not self._eof_wanted and self.live:
            self._eof_wanted = True
            self._end_if_flushed()

    def pause(self) -> None:
        """Deliver nothing until ``resume``; the peer may fill its window, no more."""
        self._paused = True

    def resume(self) -> None:
        """Undo ``pause``."""
        if not self._paused:
            return
        self._paused = False
        if self._held or self._eof_held:
            self.connection.reactor.call_soon(self._deliver_held, self.crashed)
        else:
            self._give_back()

    def close(self) -> None:
        """Flush and end our direction; what still comes is dropped."""
        if not self.live or self._closing:
            return
        self._closing = True
        self._paused = False
        self._held = NOTHING
        self._give_back()
        self._eof_wanted = True
        self._end_if_flushed()

    def abort(self) -> None:
        """End it now; the peer sees RST_STREAM."""
        self._end_wire(ErrorCode.CANCEL, None)

    def crashed(self, exc: Exception) -> None:
        """``abort`` with a reason for ``channel_closed``; the reactor calls it too."""
        self._end_wire(ErrorCode.INTERNAL_ERROR, exc)

    def splice(self, sock: SocketChannel) -> None:
        """Let the bytes of both directions skip their receivers: the relay's fast path."""
        self._sink = sock
        sock.set_pump(self.pump)

    # From the connection -------------------------------------------------------------------------

    def take(self, parts: list[memoryview], total: int) -> None:
        """DATA arrived."""
        sink = self._sink
        if sink is not None and not (self._paused or self._held or self._closing):
            # The usual way: ``_deliver`` and ``_give_back`` in one; credit only when it comes to something.
            self.bytes_in += total
            sink.write_parts(parts, total)
            owed = self.unreturned + self._owed + total
            if owed * 2 < self.window and not sink.full:
                self.unreturned = owed
                self._owed = 0
                return
            self._owed += total
            if sink.full:
                self._paused = True
            else:
                self._give_back()
            return
        if self._closing:
            self._owed += total
            self._give_back()
            return
        if self._paused or self._receiver is None or self._held:
            for part in parts:
                self._hold(part)
            return
        self._deliver(parts, total)

    def take_message(self, data: memoryview) -> None:
        """DATA arrived, in one piece."""
        sink, size = self._sink, len(data)
        if sink is None or self._paused or self._held or self._closing:
            self.take([data], size)
            return
        self.bytes_in += size
        sink.write_part(data, size)
        owed = self.unreturned + self._owed + size
        if owed * 2 < self.window and not sink.full:
            self.unreturned = owed
            self._owed = 0
            return
        self._owed += size
        if sink.full:
            self._paused = True
        else:
            self._give_back()

    def take_eof(self) -> None:
        """END_STREAM arrived."""
        self._eof_held = True
        if not self._paused and self._receiver is not None and not self._held:
            self._deliver_eof()

    def room_made(self) -> None:
        """The windows or the socket have room: send what waits, then ask for more."""
        while self._out:
            head = self._out[0]
            sent = self.connection.send_data(self, head)
            self._out_bytes -= sent
            if sent < len(head):
                self._out[0] = head[sent:]
                self.connection.wait_for_room(self)
                return
            self._out.popleft()
        self._out = NOTHING
        if self._eof_wanted:
            self._end_if_flushed()
        elif self._wants_room:
            if self._sendable() <= 0 or not self.connection.channel.writable:
                self.connection.wait_for_room(self)
                return
            self._wants_room = False
            if self._receiver is not None:
                self._receiver.write_ready()

    def lost(self, exc: Exception) -> None:
        """The peer reset it, or the connection is gone."""
        self._finish(exc)

    def stopped(self) -> bool:
        """The peer sent all it had and wants no more; False if it had not ended its direction."""
        if not self._eof_held:
            return False
        self._out = NOTHING
        self._eof_wanted = True
        self._finish_if_done()
        return True

    def pump(self, sock: socket.socket) -> int:
        """Read from *sock* what the windows allow, straight into frames; see ``set_pump``."""
        if not self.live or self._eof_wanted:
            return PUMP_BLOCKED
        connection = self.connection
        wire = connection.wire
        room = self.send_window
        if wire.send_window < room:
            room = wire.send_window
        if room <= 0 or self._out or connection.channel.full:
            self._wants_room = True
            connection.wait_for_room(self)
            return PUMP_BLOCKED
        largest = connection.largest_frame
        if largest >= _LARGE_FRAME_BYTES:
            return self._pump_one(sock, room if room < largest else largest)
        if self._bulk and room >= SLOTS * _SLOT_PAYLOAD_BYTES:
            return self._pump_slots(sock)
        limit = min(room, _SLOT_PAYLOAD_BYTES)
        size = self._pump_one(sock, limit)
        self._bulk = size == limit
        return size

    def _pump_one(self, sock: socket.socket, limit: int) -> int:
        """One recv, one frame."""
        connection = self.connection
        frames = connection.frames
        size = sock.recv_into(connection.payload, limit)
        if size:
            wire = connection.wire
            if wire.output:
                connection.push()
            pack_data_header(frames, 0, size << 8, self.stream_id)
            if connection.reactor.alone:
                connection.channel.write_alone(frames[: FRAME_HEADER_BYTES + size])
            else:
                connection.channel.write(frames[: FRAME_HEADER_BYTES + size])
            wire.sent(self, size)
            self.bytes_out += size
        return size

    def _pump_slots(self, sock: socket.socket) -> int:
        """One recvmsg, as many frames of one TLS record each as it filled."""
        connection = self.connection
        frames = connection.frames
        size: int = sock.recvmsg_into(self.connection.reactor.frame_slots)[0]
        if not size:
            return 0
        connection.push()
        full, rest = divmod(size, _SLOT_PAYLOAD_BYTES)
        stream_id = self.stream_id
        end = full * SLOT_BYTES
        for start in range(0, end, SLOT_BYTES):
            pack_data_header(frames, start, _SLOT_PAYLOAD_BYTES << 8, stream_id)
        if rest:
            pack_data_header(frames, end, rest << 8, stream_id)
            end += FRAME_HEADER_BYTES + rest
        connection.channel.write(frames[:end])
        connection.wire.sent(self, size, full + bool(rest))
        self.bytes_out += size
        self._bulk = full > 0
        return size

    # Inside --------------------------------------------------------------------------------------

    def _sendable(self) -> int:
        return self.connection.wire.sendable(self)

    def _deliver(self, parts: list[memoryview], total: int) -> None:
        self.bytes_in += total
        self._owed += total
        sink = self._sink
        if sink is not None:
            sink.write_parts(parts, total)
            if not sink.writable:
                self._paused = True
        else:
            assert self._receiver is not None
            for part in parts:
                if self._paused:
                    # Stopped between two slices: the rest waits with its turn.
                    self._hold(part)
                    self.bytes_in -= len(part)
                    self._owed -= len(part)
                elif self.live:
                    self._receiver.data_received(part)
        if not self._paused:
            self._give_back()

    def _hold(self, part: memoryview) -> None:
        if self._held is NOTHING:
            self._held = deque()
        self._held.append(bytes(part))

    def _deliver_held(self) -> None:
        while self._held and not self._paused and self.live:
            piece = self._held.popleft()
            self._deliver([memoryview(piece)], len(piece))
        if self._eof_held and not self._held and not self._paused:
            self._deliver_eof()

    def _deliver_eof(self) -> None:
        if not self.live or self._eof_delivered:
            return
        self._eof_delivered = True
        if self._receiver is not None and not self._closing:
            self._receiver.eof_received()
        if self._eof_wanted:
            self._finish_if_done()

    def _give_back(self) -> None:
        if self._owed and self.live:
            owed, self._owed = self._owed, 0
            wire = self.connection.wire
            if not self.drained and self._sink is not None:
                # More may come than one window of this width: that is for the windows to hold. Said no
                # sooner, as few connections carry that much.
                self._sink.bound_unsent()
            wire.credit(self, owed)
            if wire.has_output:
                self.connection.touch()

    def _end_if_flushed(self) -> None:
        if self._out or not self.live:
            return
        self.connection.wire.end(self)
        self.connection.touch()
        if not self._closing:
            self._finish_if_done()
        elif self._eof_held:
            self._finish(None)
        else:
            # Our direction is over, and so is our interest: RFC 9113 8.1's way to say it.
            self._end_wire(ErrorCode.NO_ERROR, None)

    def _finish_if_done(self) -> None:
        if self._eof_delivered and self._eof_wanted and not self._out:
            self._finish(None)

    def _end_wire(self, code: ErrorCode, exc: Exception | None) -> None:
        if self.live:
            self.connection.wire.reset(self, code)
            self.connection.touch()
            self._finish(exc)

    def _finish(self, exc: Exception | None) -> None:
        if not self.live:
            return
        self.live = False
        self._reason = exc
        self._held = self._out = NOTHING
        self._sink = None
        connection = self.connection
        if connection.waiting or connection.wire.closing:
            connection.stream_gone(self)
        receiver, self._receiver = self._receiver, None  # Or the two would keep each other alive.
        if receiver is not None:
            tell_closed(connection.reactor, receiver, exc)
        if self.on_finished is not None:
            self.on_finished()


@own_code
class TunnelRequest(TunnelStream):
    """A CONNECT that arrived; exactly one of ``accept`` and ``refuse`` must be called, any time later.

    Bytes the peer sends before the answer are held (at most the first window) and dropped on a refusal.

    Attributes:
        connection: Where it came from; ``connection.peer_identity`` is the source's identity.
        authority: ``:authority`` as sent, not yet parsed.
        closed: The peer has given up, or it was answered; further answers are ignored.
    """

    __slots__ = ("_on_cancelled", "closed")

    def __init__(self, stream_id: int, send_window: int, window: int) -> None:
        super().__init__(stream_id, send_window, window)
        self.closed = False
        self._on_cancelled: Callable[[], None] | None = None

    def accept(self, headers: Headers = ()) -> TunnelStream:
        """Answer 200 and return the open stream; call its ``start``.

        If the peer has given up meanwhile the stream is returned all the same, and ends at once.
        """
        if not self.closed:
            self.closed = True
            self._on_cancelled = None  # Who is to be told holds this request.
            wire = self.connection.wire
            # Or the peer took it back with the next frame, which this connection comes to next.
            if self.stream_id in wire.streams:
                wire.accept(self, headers)
                self.connection.touch()
        return self

    def refuse(self, status: int, text: str = "") -> None:
        """Answer *status* with *text* as a short body, and end the stream."""
        if not self.closed:
            self.closed = True
            self._on_cancelled = None
            wire = self.connection.wire
            if self.stream_id in wire.streams:
                wire.refuse(self, status, text)
                self.connection.touch()
            self._finish(TunnelRefused(status))

    def on_cancelled(self, callback: Callable[[], None]) -> None:
        """Call *callback* if the peer resets the stream (or the connection ends) before the answer."""
        self._on_cancelled = callback

    def _finish(self, exc: Exception | None) -> None:
        callback, self._on_cancelled = self._on_cancelled, None
        if not self.closed and callback is not None:
            self.connection.reactor.call_soon(callback, _recorded)
        self.closed = True
        super()._finish(exc)


def _recorded(exc: Exception) -> None:
    """For callbacks after the end: the reactor has recorded *exc*, nothing is left to close."""
