"""HTTP through the engine: a client, a forwarder and an origin in one loop over socket pairs."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from ambient.engine.channel import Data, SocketChannel
from ambient.engine.http_client import ClientConnection, HttpPool, OnChannel
from ambient.engine.http_forward import Answer, Forward, Forwarder, Upstream
from ambient.engine.http_server import HttpServer, ServerConnection
from ambient.engine.reactor import Reactor
from ambient.wire.http1_heads import RequestHead, ResponseHead

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


class Bench:
    """A forwarder whose dials end at sockets that the test holds, and clients that the test plays."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.origins: list[socket.socket] = []
        self.failures: list[Exception] = []
        self.records: list[Forward] = []
        self.decided: Upstream | Answer = Upstream("origin", b"x-hop: 1\r\n")
        self.pool = HttpPool(self.reactor, self.dial)
        self.forwarder = Forwarder(
            self.reactor.now, self.pool, lambda forward: self.decided, self.records.append
        )
        self.server = HttpServer(self.reactor, self.forwarder.on_request)
        self.open: list[socket.socket] = []

    def dial(self, key: str, on_channel: OnChannel) -> None:
        if self.failures:
            self.reactor.call_soon(lambda: on_channel(self.failures.pop(0)))
            return
        ours, theirs = self.pair()
        self.origins.append(theirs)
        on_channel(SocketChannel(self.reactor, ours))

    def pair(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.open += [ours, theirs]
        return ours, theirs

    def client(self) -> socket.socket:
        ours, theirs = self.pair()
        return self.serve(ours, theirs)

    def tcp_client(self) -> socket.socket:
        """A client that can reset its connection."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname())
            ours, _address = listener.accept()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.open += [ours, theirs]
        return self.serve(ours, theirs)

    def serve(self, ours: socket.socket, theirs: socket.socket) -> socket.socket:
        self.server.serve(SocketChannel(self.reactor, ours))
        return theirs

    def until(self, condition: Callable[[], object]) -> None:
        """Run the loop until *condition*; it must come true soon."""
        deadline = time.monotonic() + 5
        while not condition():
            assert time.monotonic() < deadline, "the condition never came true"
            self.reactor.run_once(0.01)

    def read(self, sock: socket.socket, size: int) -> bytes:
        """Exactly *size* bytes from *sock*, or what came before its end."""
        data = bytearray()

        def enough() -> bool:
            try:
                piece = sock.recv(size - len(data))
            except BlockingIOError:
                return False
            except ConnectionResetError:
                piece = b""
            data.extend(piece)
            return not piece or len(data) >= size

        self.until(enough)
        return bytes(data)

    def read_until(self, sock: socket.socket, end: bytes) -> bytes:
        data = b""
        while not data.endswith(end):
            piece = self.read(sock, 1)
            assert piece, f"ended after {data!r}"
            data += piece
        return data

    def origin(self, number: int = 0) -> socket.socket:
        self.until(lambda: len(self.origins) > number)
        return self.origins[number]

    def close(self) -> None:
        self.server.abort()
        self.pool.close()
        for _ in range(3):
            self.reactor.run_once(0)
        for sock in self.open:
            sock.close()
        self.reactor.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    yield made
    made.close()


def test_request_goes_on_and_its_answer_comes_back(bench: Bench) -> None:
    """Twice on the same two connections: keep-alive on both sides."""
    client = bench.client()
    for count in (1, 2):
        client.send(b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nX-One: 1\r\n\r\n")
        origin = bench.origin()
        expected = b"GET /x HTTP/1.1\r\nhost: a\r\nx-one: 1\r\nx-hop: 1\r\n\r\n"
        assert bench.read(origin, len(expected)) == expected

        origin.send(OK)

        assert bench.read(client, len(OK)) == OK
        assert [(each.status, each.flag, each.bytes_sent) for each in bench.records] == [
            (200, "-", 2)
        ] * count
    assert bench.pool.statistics().dials == 1
    assert bench.pool.statistics().reuses == 1


def test_chunked_bodies_stream_both_ways(bench: Bench) -> None:
    """Neither side waits for the end of the other's body."""
    client = bench.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
    origin = bench.origin()
    assert bench.read_until(origin, b"3\r\nabc\r\n").startswith(b"POST / HTTP/1.1\r\n")

    origin.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x\r\nde\r\n")
    bench.read_until(client, b"\r\n\r\n2\r\nde\r\n")
    client.send(b"1\r\nf\r\n0\r\n\r\n")
    assert bench.read(origin, 11) == b"1\r\nf\r\n0\r\n\r\n"
    origin.send(b"0\r\n\r\n")

    assert bench.read(client, 5) == b"0\r\n\r\n"
    assert (bench.records[0].bytes_received, bench.records[0].bytes_sent) == (4, 2)


def test_pipelined_requests_are_answered_in_order_one_at_a_time(bench: Bench) -> None:
    """The second request leaves only after the first was answered."""
    client = bench.client()
    client.send(GET + GET.replace(b"/ ", b"/2 "))
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\n")
    bench.reactor.run_once(0)
    with pytest.raises(BlockingIOError):
        origin.recv(1)

    origin.send(OK)
    assert b"GET /2 " in bench.read_until(origin, b"\r\n\r\n")
    origin.send(OK)

    assert bench.read(client, 2 * len(OK)) == OK * 2


def test_body_until_close_becomes_chunks(bench: Bench) -> None:
    """The client's connection outlives an origin that frames by closing."""
    client = bench.client()
    client.send(GET)
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\n")
    origin.send(b"HTTP/1.0 200 OK\r\n\r\nabc")
    origin.close()

    answer = bench.read_until(client, b"0\r\n\r\n")

    assert answer.endswith(b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
    client.send(GET)
    bench.origin(1)


def test_old_client_gets_the_end_of_the_connection(bench: Bench) -> None:
    """HTTP/1.0 knows no chunks."""
    client = bench.client()
    client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\n")
    origin.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")

    assert bench.read(client, 1000) == b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nab"


def test_dead_pooled_connection_is_replaced_unseen(bench: Bench) -> None:
    """The upstream closed while the request was on its way: the client must not notice."""
    client = bench.client()
    client.send(GET)
    first = bench.origin()
    bench.read_until(first, b"\r\n\r\n")
    first.send(OK)
    bench.read(client, len(OK))

    client.send(GET)
    bench.read_until(first, b"\r\n\r\n")
    first.close()
    second = bench.origin(1)
    bench.read_until(second, b"\r\n\r\n")
    second.send(OK)

    assert bench.read(client, len(OK)) == OK
    assert [each.flag for each in bench.records] == ["-", "-"]


def test_post_on_a_dead_connection_is_not_repeated(bench: Bench) -> None:
    """Nobody knows whether the upstream acted on it (RFC 9110 section 9.2.2)."""
    client = bench.client()
    client.send(GET)
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\n")
    origin.send(OK)
    bench.read(client, len(OK))

    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
    bench.read_until(origin, b"\r\n\r\nx")
    origin.close()

    assert bench.read_until(client, b"\r\n").startswith(b"HTTP/1.1 502 ")
    assert bench.records[-1].flag == "UC"


def test_failed_dial_is_tried_again_and_then_answered(bench: Bench) -> None:
    """A request that nothing was sent of may always try again; then the client is told why."""
    bench.failures = [ConnectionRefusedError("refused")]
    client = bench.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\nx")
    origin.send(OK)
    bench.read(client, len(OK))

    bench.failures = [ConnectionRefusedError("refused")] * 3
    other = bench.client()
    bench.pool.close_where(lambda key: True)
    other.send(GET)

    assert bench.read_until(other, b"\r\n").startswith(b"HTTP/1.1 503 ")
    assert bench.records[-1].flag == "UF"


@pytest.mark.parametrize(
    ("failure", "status"), [(TimeoutError("late"), 504), (OSError("gone"), 503)], ids=["timeout", "other"]
)
def test_kind_of_dial_failure_is_told(bench: Bench, failure: Exception, status: int) -> None:
    """504 and 503 mean different things to whoever is on call."""
    bench.failures = [failure] * 3
    client = bench.client()
    client.send(GET)

    assert bench.read_until(client, b"\r\n").startswith(b"HTTP/1.1 %d " % status)


def test_origin_that_dies_in_the_answer_takes_the_client_along(bench: Bench) -> None:
    """A truncated answer must not look complete."""
    client = bench.client()
    client.send(GET)
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\n")
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
    bench.read_until(client, b"abc")
    origin.close()

    assert bench.read(client, 100) == b""
    assert bench.records[0].flag == "UC"


def test_broken_answer_becomes_502(bench: Bench) -> None:
    """What the origin said in two ways is not passed on in one."""
    client = bench.client()
    client.send(GET)
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\n")
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")

    assert bench.read_until(client, b"\r\n").startswith(b"HTTP/1.1 502 ")


def test_client_that_leaves_takes_its_upstream_along(bench: Bench) -> None:
    """Work for nobody is stopped, and recorded as the client's doing."""
    client = bench.tcp_client()
    client.send(GET)
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\n")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    client.close()
    bench.until(lambda: bench.records)
    assert bench.records[0].flag == "DC"
    assert bench.read(origin, 1) == b""


def test_half_closed_client_is_still_answered(bench: Bench) -> None:
    """``printf ... | nc`` closes its side right after the request."""
    client = bench.client()
    client.send(GET)
    client.shutdown(socket.SHUT_WR)
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\n")
    origin.send(OK)

    answer = bench.read(client, 1000)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nok")


def test_idle_client_that_ends_is_forgotten(bench: Bench) -> None:
    """The ordinary end of a keep-alive connection."""
    client = bench.client()
    client.shutdown(socket.SHUT_WR)

    assert bench.read(client, 1) == b""
    client.close()
    bench.until(lambda: not bench.server.connections)


def test_early_answer_lets_the_client_finish_its_body(bench: Bench) -> None:
    """Closing at once would reset the connection under the answer."""
    bench.decided = Answer(404, "nobody here", "NR")
    client = bench.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n" + b"x" * 10)
    assert bench.read_until(client, b"nobody here\n").startswith(b"HTTP/1.1 404 ")

    sent = 10
    while sent < 100_000:
        sent += client.send(b"x" * min(10_000, 100_000 - sent))
        bench.reactor.run_once(0)
    bench.decided = Upstream("origin")
    client.send(GET)

    bench.read_until(bench.origin(), b"\r\n\r\n")
    assert bench.records[0].flag == "NR"


def test_unwanted_body_has_a_bound(bench: Bench) -> None:
    """But not at any price."""
    bench.decided = Answer(404, "nobody here", "NR")
    client = bench.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
    bench.read_until(client, b"nobody here\n")

    def cut() -> bool:
        try:
            client.send(b"x" * 65536)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return False

    bench.until(cut)


def test_refused_request_is_answered_and_the_connection_ends(bench: Bench) -> None:
    """The client learns what was wrong; nothing behind it is read."""
    client = bench.client()
    client.send(b"GET / HTTP/1.1\r\n\r\n" + GET)

    answer = bench.read(client, 1000)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close\r\n" in answer
    assert not bench.records


def test_body_that_breaks_ends_both_sides(bench: Bench) -> None:
    """The upstream must not take the part for the whole."""
    client = bench.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
    origin = bench.origin()
    bench.read_until(origin, b"1\r\nx\r\n")
    client.send(b"nonsense\r\n")

    assert bench.read(origin, 1) == b""
    assert bench.read(client, 1) == b""
    assert bench.records[0].flag == "DC"


def test_slow_client_stops_the_origin(bench: Bench) -> None:
    """Back-pressure reaches the origin: the proxy holds no more than its buffers."""
    client = bench.client()
    client.send(GET)
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\n")
    size = 64 * 1024 * 1024
    origin.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)

    sent, quiet = 0, 0
    while quiet < 20:
        try:
            sent += origin.send(b"x" * 65536)
            quiet = 0
        except BlockingIOError:
            quiet += 1
        bench.reactor.run_once(0)
    assert sent < 8 * 1024 * 1024

    got = 0

    def all_read() -> bool:
        nonlocal got, sent
        try:
            got += len(client.recv(1 << 20))
            if sent < size:
                sent += origin.send(b"x" * min(65536, size - sent))
        except BlockingIOError:
            pass
        return got >= size

    bench.until(all_read)
    bench.until(lambda: bench.records)
    assert bench.records[0].bytes_sent == size


def test_slow_origin_stops_the_client(bench: Bench) -> None:
    """The same for the request's body."""
    client = bench.client()
    size = 32 * 1024 * 1024
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
    origin = bench.origin()
    sent, quiet = 0, 0
    while quiet < 20:
        try:
            sent += client.send(b"x" * 65536)
            quiet = 0
        except BlockingIOError:
            quiet += 1
        bench.reactor.run_once(0)
    assert sent < 8 * 1024 * 1024

    got = 0

    def all_read() -> bool:
        nonlocal got, sent
        try:
            if sent < size:
                sent += client.send(b"x" * min(65536, size - sent))
        except BlockingIOError:
            pass
        try:
            got += len(origin.recv(1 << 20))
        except BlockingIOError:
            pass
        return got >= size

    bench.until(all_read)


def test_drain_ends_connections_with_their_next_answer(bench: Bench) -> None:
    """No request is lost by a proxy that goes away: each client is told with its answer."""
    client, idle = bench.client(), bench.client()
    client.send(GET)
    origin = bench.origin()
    bench.read_until(origin, b"\r\n\r\n")
    emptied: list[bool] = []
    bench.server.on_empty = lambda: emptied.append(True)

    bench.server.drain()
    origin.send(OK)

    assert b"connection: close\r\n" in bench.read(client, 1000)
    bench.server.close_idle()
    assert bench.read(idle, 1) == b""
    client.close()
    idle.close()
    bench.until(lambda: emptied)


def test_expectation_is_met_by_the_proxy(bench: Bench) -> None:
    """curl waits a second for 100 Continue before it sends a large body."""
    client = bench.client()
    client.send(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n")
    assert bench.read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"x")
    origin = bench.origin()
    assert b"expect" not in bench.read_until(origin, b"\r\n\r\nx")


def test_head_and_local_answers(bench: Bench) -> None:
    """An answer to HEAD has no body, whoever writes it."""
    bench.decided = Answer(404, "nobody here", "NR")
    client = bench.client()
    client.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n" + GET)

    answers = bench.read_until(client, b"nobody here\n")

    assert answers.count(b"nobody here") == 1
    assert answers.count(b"content-length: 12\r\n") == 2


class Pausing:
    """A sink that has had enough with every piece, as one whose client does not read."""

    def __init__(self, conn: ClientConnection) -> None:
        self.conn, self.ended = conn, False
        conn.begin(self, b"GET", GET)
        conn.end()

    def response_head(self, head: ResponseHead) -> None: ...
    def upstream_writable(self) -> None: ...
    def upstream_lost(self, reason: str) -> None: ...
    def response_body(self, data: bytes) -> None:
        self.conn.pause()

    def response_ended(self) -> None:
        self.ended = True


def test_a_connection_paused_by_its_last_piece_is_not_handed_on_so(bench: Bench) -> None:
    """Who takes it next does not know that it is paused, and would wait for ever."""
    sinks: list[Pausing] = []

    def use(conn: ClientConnection | Exception) -> None:
        assert isinstance(conn, ClientConnection)
        sinks.append(Pausing(conn))

    for count in (1, 2):
        idle = bench.pool.take("origin")
        if idle is None:
            bench.pool.open("origin", use)
        else:
            use(idle)
        bench.until(lambda count=count: len(sinks) == count)
        bench.read(bench.origin(), len(GET))
        bench.origin().send(OK)
        bench.until(lambda: sinks[-1].ended)

    assert bench.pool.statistics().reuses == 1


class Slow:
    """A sink that never answers."""

    def body_received(self, data: bytes) -> None: ...
    def body_ended(self) -> None: ...
    def client_writable(self) -> None: ...
    def client_gone(self, reason: str) -> None: ...


def test_deadlines_end_what_does_not_move(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    """Slow heads get 408, silent exchanges are cut, and idle connections are closed in the end."""
    monkeypatch.setattr("ambient.engine.http_server.HEAD_DEADLINE", 4.0)
    monkeypatch.setattr("ambient.engine.http_server.EXCHANGE_DEADLINE", 4.0)
    monkeypatch.setattr("ambient.engine.http_server.IDLE_DEADLINE", 4.0)

    def never(connection: ServerConnection, head: RequestHead) -> Slow:
        return Slow()

    bench.server.on_request = never
    slow, silent, idle = bench.client(), bench.client(), bench.client()
    slow.send(b"GET / HT")
    silent.send(GET)
    for _ in range(3):
        bench.reactor.run_once(0.01)
        slow.send(b"T")
        bench.server.tick += 1
        for connection in list(bench.server.connections):
            connection.check_deadlines()

    assert bench.read_until(slow, b"\r\n").startswith(b"HTTP/1.1 408 ")
    assert bench.read(silent, 1) == b""
    assert bench.read(idle, 1) == b""


def test_answer_may_come_from_within_the_request(bench: Bench) -> None:
    """A sink may answer before its maker returns."""

    def at_once(connection: ServerConnection, head: RequestHead) -> Slow:
        connection.send_head(ResponseHead(204, bodiless=True))
        connection.send_end()
        return Slow()

    bench.server.on_request = at_once
    client = bench.client()
    client.send(GET * 3)

    answer = b"HTTP/1.1 204 No Content\r\n\r\n"
    assert bench.read(client, 3 * len(answer)) == answer * 3


def test_head_that_cannot_be_sent_ends_its_connection_only(bench: Bench) -> None:
    """A fault in one connection's flush is that connection's end, never the loop's."""
    ours, theirs = bench.pair()
    channel = Unwritable(bench.reactor, ours)
    bench.server.serve(channel)
    bench.decided = Upstream("origin")
    theirs.sendall(GET)
    bench.until(lambda: bench.origins)

    bench.origins[0].sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")

    bench.until(lambda: not bench.server.connections)
    assert [str(failure) for failure in bench.reactor.failures] == ["no more paper"]
    neighbour = bench.client()
    bench.decided = Answer(204, "")
    neighbour.sendall(GET)
    assert bench.read(neighbour, 12) == b"HTTP/1.1 204"


class Unwritable(SocketChannel):
    """A channel with a bug: it cannot be written to."""

    def write(self, data: Data) -> None:
        raise RuntimeError("no more paper")
