"""A tunnel's deadlines, its goodbyes, and what a hostile peer gets."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from ambient.engine.channel import NullReceiver
from ambient.engine.tls import Svid, TlsContext, accept_tls, connect_tls
from ambient.engine.tunnel import TunnelConnection, TunnelLost, TunnelRefused, TunnelRequest, TunnelStream
from ambient.errors import LocalProtocolError, RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.model.limits import Limits
from ambient.wire import hbone_frames as f

SERVER = SpiffeId("cluster.local", "shop", "api")
AUTHORITY = "10.0.0.9:80"


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class Collect(NullReceiver):
    """Remembers what a stream delivered."""

    def __init__(self) -> None:
        self.data = b""
        self.eof = False
        self.closed: list[Exception | None] = []

    def data_received(self, data: memoryview) -> None:
        self.data += bytes(data)

    def eof_received(self) -> None:
        self.eof = True

    def channel_closed(self, exc: Exception | None) -> None:
        self.closed.append(exc)


class Ends:
    """A client's and a server's connection, and what happened to them."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.client: Any = None
        self.server: Any = None
        self.requests: list[TunnelRequest] = []
        self.answers: list[Any] = []
        self.closed: dict[str, list[Exception | None]] = {"client": [], "server": []}
        self.rejected: list[tuple[int, str]] = []

    def open(self, **more: Any) -> None:
        self.loop.do(lambda: self.client.open_stream(AUTHORITY, (), self.answers.append, **more))

    def opened(self) -> tuple[TunnelStream, TunnelStream, Collect, Collect]:
        """One open stream: both ends and their receivers."""
        before = len(self.requests), len(self.answers)
        self.open()
        self.loop.until(lambda: len(self.requests) > before[0])
        near, far = Collect(), Collect()

        def accept() -> TunnelStream:
            stream = self.requests[-1].accept()
            stream.start(far)
            return stream

        server = self.loop.do(accept)
        self.loop.until(lambda: len(self.answers) > before[1])
        client = self.answers[-1]
        self.loop.do(lambda: client.start(near))
        return client, server, near, far


@pytest.fixture
def ends(loop: Any, client_svid: Svid, server_svid: Svid) -> Any:
    made = Ends(loop)
    near, far = pair()
    reactor = loop.reactor

    def connected(side: str, result: Any) -> None:
        on_closed = made.closed[side].append
        if side == "client":
            made.client = TunnelConnection(reactor, result, on_closed=on_closed)
        else:
            made.server = TunnelConnection(
                reactor,
                result,
                on_request=made.requests.append,
                on_closed=on_closed,
                on_rejected=lambda *what: made.rejected.append(what),
            )

    server, client = TlsContext(server_svid, server=True), TlsContext(client_svid, server=False)
    loop.do(lambda: accept_tls(reactor, far, server, partial(connected, "server")))
    expected = frozenset((SERVER,))
    loop.do(lambda: connect_tls(reactor, near, client, expected, partial(connected, "client")))
    loop.until(lambda: made.client and made.server)
    yield made
    loop.do(made.client.close)
    loop.do(made.server.close)
    loop.until(lambda: reactor.statistics().descriptors == 0)
    assert [len(closed) for closed in made.closed.values()] == [1, 1]


def test_an_unanswered_connect_times_out(ends: Ends) -> None:
    """The server gives up its dial when nobody waits any more."""
    cancelled: list[bool] = []
    ends.open(deadline=0.3)
    ends.loop.until(lambda: ends.requests)
    ends.loop.do(lambda: ends.requests[0].on_cancelled(lambda: cancelled.append(True)))
    ends.loop.until(lambda: ends.answers and cancelled)

    assert isinstance(ends.answers[0], TimeoutError)
    assert ends.requests[0].closed
    late = ends.loop.do(lambda: ends.requests[0].accept())
    ends.loop.do(lambda: ends.requests[0].refuse(503))
    receiver = Collect()
    ends.loop.do(lambda: late.start(receiver))
    ends.loop.until(lambda: receiver.closed)
    assert ends.loop.do(lambda: ends.client.usable)


def test_a_refusal_leaves_the_connection_usable(ends: Ends) -> None:
    """A denial is an answer of a healthy peer."""
    ends.open()
    ends.loop.until(lambda: ends.requests)
    ends.loop.do(lambda: ends.requests[0].refuse(403, "denied by shop/deny"))
    ends.loop.until(lambda: ends.answers)

    assert isinstance(ends.answers[0], TunnelRefused)
    assert ends.answers[0].status == 403
    assert ends.loop.do(lambda: ends.client.statistics().streams) == 0
    assert ends.opened()


@pytest.mark.parametrize("answer", ["accept", "refuse"])
def test_a_request_that_was_taken_back_with_the_next_frame_may_be_answered(ends: Ends, answer: str) -> None:
    """Whoever answers at once cannot know yet: no failure of ours, and the stream ends."""
    receiver = Collect()

    def at_once(request: TunnelRequest) -> None:
        ends.requests.append(request)
        if answer == "accept":
            request.accept().start(receiver)
        else:
            request.refuse(503)

    def ask_and_take_back() -> None:
        ends.server._on_request = at_once
        ends.client.open_stream(AUTHORITY, (), ends.answers.append)
        (stream,) = ends.client.wire.streams.values()
        ends.client._opening.clear()
        ends.client.wire.reset(stream, f.ErrorCode.CANCEL)

    ends.loop.do(ask_and_take_back)
    ends.loop.until(lambda: ends.requests and not ends.requests[0].live)

    assert [type(exc) for exc in receiver.closed] == [ConnectionResetError] * (answer == "accept")
    assert not ends.loop.reactor.failures
    assert not ends.loop.do(lambda: ends.server.closed)


def test_early_data_is_held_until_the_answer_and_dropped_on_a_refusal(ends: Ends) -> None:
    """CVE-2025-64763: not a byte reaches the application before policy has spoken."""
    client = ends.client
    ends.open()
    ends.loop.until(lambda: ends.requests)

    def early() -> None:
        stream = next(iter(client.wire.streams.values()))
        client.send_data(stream, b"early")

    ends.loop.do(early)
    server = ends.server
    ends.loop.until(lambda: server.channel.bytes_in > 100)
    receiver = Collect()
    ends.loop.do(lambda: ends.requests[0].accept().start(receiver))
    ends.loop.until(lambda: receiver.data == b"early")


def test_a_server_is_drained_without_losing_a_stream(ends: Ends) -> None:
    """GOAWAY: no new streams, the old ones go on, and the last one ends the connection."""
    client, server, near, far = ends.opened()
    ends.loop.do(ends.server.goaway)
    ends.loop.until(lambda: not ends.client.usable)
    ends.loop.do(lambda: (client.write(b"still"), client.write_eof()))
    ends.loop.until(lambda: far.data == b"still" and far.eof)
    ends.loop.do(lambda: (server.write(b"here"), server.write_eof()))
    ends.loop.until(lambda: ends.closed["client"] and ends.closed["server"])

    assert near.data == b"here"
    assert near.closed == far.closed == [None]
    assert ends.closed == {"client": [None], "server": [None]}
    ends.open()
    ends.loop.until(lambda: len(ends.answers) == 2)
    assert isinstance(ends.answers[1], TunnelLost)
    assert ends.answers[1].retryable


def test_a_client_that_is_done_closes(ends: Ends) -> None:
    """The pool's goodbye to an idle connection."""
    ends.loop.do(ends.client.goaway)
    ends.loop.until(lambda: ends.closed["server"] and ends.closed["client"])

    assert ends.closed == {"client": [None], "server": [None]}


def test_a_lost_connection_tells_everyone(ends: Ends) -> None:
    """Open streams end with a reason; unanswered ones may be tried again."""
    _, _, near, far = ends.opened()
    ends.open()
    ends.loop.until(lambda: len(ends.requests) == 2)
    ends.loop.do(ends.client.channel.abort)
    ends.loop.until(lambda: near.closed and far.closed and len(ends.answers) == 2)

    assert isinstance(near.closed[0], TunnelLost)
    assert isinstance(far.closed[0], TunnelLost)
    assert ends.answers[1].retryable


def test_a_reset_of_a_stream(ends: Ends) -> None:
    """Only that stream; its neighbour lives."""
    first, _, near, far = ends.opened()
    second, _, _, other = ends.opened()
    ends.loop.do(first.abort)
    ends.loop.until(lambda: near.closed and far.closed)

    assert near.closed == [None]
    assert isinstance(far.closed[0], ConnectionResetError)
    ends.loop.do(lambda: second.write(b"alive"))
    ends.loop.until(lambda: other.data == b"alive")


def test_a_closed_stream_is_flushed_first(ends: Ends) -> None:
    """close() means: send what was written; only then stop listening."""
    client, _, near, far = ends.opened()
    payload = bytes(3_000_000)
    ends.loop.do(lambda: (client.write(payload), client.close()))
    ends.loop.until(lambda: far.eof and near.closed)

    assert len(far.data) == len(payload)


def test_a_paused_stream_holds_no_more_than_its_window(ends: Ends) -> None:
    """The receiver's pause is the sender's stop; resume delivers all in order, then the end."""
    client, server, _, far = ends.opened()
    ends.loop.do(server.pause)
    payload = bytes(range(256)) * 4000
    ends.loop.do(lambda: (client.write(payload), client.write_eof()))
    ends.loop.until(lambda: not client.writable and ends.client.wire.sendable(client) == 0)
    assert far.data == b""
    assert ends.loop.do(lambda: sum(map(len, server._held))) <= 64 * 1024

    ends.loop.do(server.resume)
    ends.loop.until(lambda: far.eof)
    assert far.data == payload


def test_an_exception_of_a_receiver_costs_its_stream(ends: Ends) -> None:
    """The bug's connection ends with the bug as its reason; the tunnel's others go on."""
    client, _, near, far = ends.opened()
    second, _, _, other = ends.opened()

    def broken(data: memoryview) -> None:
        raise ZeroDivisionError("a bug")

    far.data_received = broken  # type: ignore[method-assign]
    ends.loop.do(lambda: client.write(b"boom"))
    ends.loop.until(lambda: near.closed and far.closed)

    assert isinstance(far.closed[0], ZeroDivisionError)
    assert isinstance(near.closed[0], ConnectionResetError)
    assert isinstance(ends.loop.reactor.failures[-1], ZeroDivisionError)
    ends.loop.do(lambda: second.write(b"alive"))
    ends.loop.until(lambda: other.data == b"alive")


@pytest.mark.parametrize(
    "send",
    [
        lambda wire: wire.ping(b"12345678"),
        lambda wire: wire.output.extend(f.settings(())),
    ],
    ids=["ping", "settings"],
)
def test_a_flood_ends_the_connection(ends: Ends, send: Callable[[Any], None]) -> None:
    """The budgets of the wire, met by a real socket: GOAWAY, and a word for the record."""

    def flood() -> None:
        for _ in range(100):
            send(ends.client.wire)
        ends.client.touch()

    ends.loop.do(flood)
    ends.loop.until(lambda: ends.closed["server"])

    assert isinstance(ends.closed["server"][0], RemoteProtocolError)


def test_what_is_not_connect_is_answered_and_reported(ends: Ends) -> None:
    """405 without asking anyone, and the owner may count it."""

    def get() -> None:
        block = b"\x82\x87\x84\x01\x01x"
        ends.client.wire.output.extend(f.frame(f.HEADERS, 5, 1, block))
        ends.client.wire._next_id = 3
        ends.client.touch()

    ends.loop.do(get)
    ends.loop.until(lambda: ends.rejected)

    assert ends.rejected == [(405, "only CONNECT is served here")]
    assert not ends.requests


def test_headers_that_cannot_be_sent_cost_nothing(ends: Ends) -> None:
    """A label with a line feed must not become a header, nor end the tunnel."""
    ends.loop.do(lambda: ends.client.open_stream("a:1", (("x", "a\nb"),), ends.answers.append))
    ends.loop.until(lambda: ends.answers)

    assert isinstance(ends.answers[0], LocalProtocolError)
    assert ends.loop.do(lambda: ends.client.usable)


def test_a_silent_peer_is_noticed(ends: Ends) -> None:
    """A host that vanished sends no FIN: ask, and believe the silence."""
    ends.client._limits = Limits(ping_interval=0.05, ping_timeout=0.05)
    ends.loop.do(ends.server.channel.pause)
    ends.loop.do(ends.client._check_alive)
    ends.loop.until(lambda: ends.closed["client"])

    assert isinstance(ends.closed["client"][0], TunnelLost)


def test_a_quiet_but_living_peer_stays(ends: Ends) -> None:
    """PING is answered by whoever lives, however little there is to say."""
    ends.client._limits = Limits(ping_interval=0.02, ping_timeout=0.2)
    before = ends.loop.do(lambda: ends.server.channel.bytes_in)
    ends.loop.do(ends.client._check_alive)
    ends.loop.until(lambda: ends.server.channel.bytes_in >= before + 2 * 17)

    assert not ends.closed["client"]


def test_an_answered_ping_is_a_sign_of_life_however_late_we_look(ends: Ends) -> None:
    """The timer that looks for the answer may itself be late: a busy loop must not cost idle tunnels."""

    def look_late() -> None:
        now = ends.loop.reactor.now()
        ends.client._pinged, ends.client._pinged_at, ends.client._heard = True, now - 5.01, now - 5.009
        ends.client._check_alive()

    ends.loop.do(look_late)
    assert not ends.client.closed


def test_a_connection_without_a_request_is_cut(ends: Ends) -> None:
    """Ten seconds for the first CONNECT; afterwards a pooled connection may rest."""
    assert ends.server._first is not None
    ends.opened()
    assert ends.server._first is None
    ends.loop.do(ends.server._no_request)
    ends.loop.until(lambda: ends.closed["server"])

    assert isinstance(ends.closed["server"][0], RemoteProtocolError)
