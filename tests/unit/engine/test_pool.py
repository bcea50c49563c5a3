"""The pool with real handshakes: failures shared, dead connections replaced."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.engine.pool import TunnelPool, hbone_dialler
from ambient.engine.tls import TlsContext, TlsError
from ambient.engine.tunnel import TunnelLost, TunnelRefused, TunnelStream
from ambient.errors import Unavailable
from ambient.model.identity import SpiffeId
from ambient.model.pool_plan import PoolKey
from ambient.wire.hbone_frames import ErrorCode

CLIENT = SpiffeId("cluster.local", "shop", "web")
SERVER = SpiffeId("cluster.local", "shop", "api")


def key(port: int, *identities: SpiffeId) -> PoolKey:
    return PoolKey("a", CLIENT, "b", "127.0.0.1", port, frozenset(identities or (SERVER,)))


def answers_of(proxies: Any, pool_key: PoolKey, count: int = 1) -> list[Any]:
    answers: list[Any] = []
    for _ in range(count):
        proxies.loop.do(lambda: proxies.pool.open(pool_key, "10.0.0.9:80", (), answers.append))
    proxies.loop.until(lambda: len(answers) == count)
    return answers


def test_a_dead_port_fails_everyone_at_once(proxies: Any) -> None:
    """Nobody waits for the same failure in a queue."""
    answers = answers_of(proxies, key(1), 5)

    assert all(isinstance(answer, ConnectionRefusedError) for answer in answers)
    assert proxies.loop.do(lambda: proxies.pool.statistics().waiting) == 0


def test_the_wrong_identity_fails_with_its_reason(proxies: Any) -> None:
    """The record must say who answered in whose place."""
    (answer,) = answers_of(proxies, key(proxies.hbone.address[1], CLIENT))

    assert isinstance(answer, TlsError)
    assert answer.reason == "wrong_identity"


def test_no_certificate_yet(proxies: Any) -> None:
    """An exception of the dialler is an answer, not a crash."""

    def none(pool_key: PoolKey) -> TlsContext:
        raise Unavailable("no certificate yet")

    reactor = proxies.loop.reactor
    pool = proxies.loop.do(lambda: TunnelPool(reactor, hbone_dialler(reactor, none)))
    answers: list[Any] = []
    proxies.loop.do(lambda: pool.open(key(1), "a:1", (), answers.append))
    proxies.loop.until(lambda: answers)

    assert isinstance(answers[0], Unavailable)
    proxies.loop.do(pool.close)
    proxies.loop.do(lambda: pool.open(key(1), "a:1", (), answers.append))
    proxies.loop.until(lambda: len(answers) == 2)
    assert isinstance(answers[1], TunnelLost)


def test_a_pooled_connection_that_died_is_replaced_once(proxies: Any) -> None:
    """The other node restarted: the next request must not pay for it."""
    client, app = proxies.pair()
    client.close()
    app.close()
    proxies.loop.until(lambda: len(proxies.outbound) == 1)
    (server,) = proxies.tunnels
    calls: list[Any] = []

    def die(request: Any) -> None:
        calls.append(request)
        proxies.on_request = None
        server.channel.abort()

    proxies.on_request = die
    client, app = proxies.pair()
    with client, app:
        client.sendall(b"again")
        assert app.recv(10) == b"again"

    assert len(calls) == 1
    assert proxies.loop.do(lambda: proxies.pool.statistics().handshakes) == 2


def test_a_fresh_connection_that_dies_is_not_retried(proxies: Any) -> None:
    """A server that kills every connection must not be hammered."""

    def die(request: Any) -> None:
        request.connection.channel.abort()

    proxies.on_request = die
    (answer,) = answers_of(proxies, key(proxies.hbone.address[1]))

    assert isinstance(answer, TunnelLost)
    assert proxies.loop.do(lambda: proxies.pool.statistics().handshakes) == 1


def goodbye_to(proxies: Any, first: int, *, at_once: bool) -> None:
    """The first so many connections say that they take no streams, at once or the graceful way."""
    made = proxies.tunnels

    class Leaving(list[Any]):
        def append(self, tunnel: Any) -> None:
            super().append(tunnel)
            if len(self) <= first:
                tunnel.goaway()
                if at_once:
                    tunnel.wire.goodbye_over()

    proxies.tunnels = Leaving(made)


@pytest.mark.parametrize("at_once", [True, False], ids=["left-out", "graceful"])
def test_a_fresh_connection_that_takes_no_streams_is_replaced_once(proxies: Any, at_once: bool) -> None:
    """A pod that was released and is enrolled again says goodbye to who had knocked before."""
    goodbye_to(proxies, 1, at_once=at_once)
    client, app = proxies.pair()
    with client, app:
        client.sendall(b"taken")
        assert app.recv(10) == b"taken"

    assert proxies.refused == []
    assert proxies.loop.do(lambda: proxies.pool.statistics().handshakes) == (2 if at_once else 1)


def test_whoever_never_takes_a_stream_is_asked_twice_and_no_more(proxies: Any) -> None:
    """Or two processes would turn in a circle."""
    goodbye_to(proxies, 100, at_once=True)
    (answer,) = answers_of(proxies, key(proxies.hbone.address[1]))

    assert isinstance(answer, TunnelLost)
    assert answer.unprocessed
    assert proxies.loop.do(lambda: proxies.pool.statistics().handshakes) == 2


def test_a_stream_that_is_refused_on_a_fresh_connection_is_asked_for_on_another(proxies: Any) -> None:
    """REFUSED_STREAM: nothing was done about it (RFC 9113 8.7)."""

    def refuse(request: Any) -> None:
        proxies.on_request = None
        request.connection.wire.reset(request, ErrorCode.REFUSED_STREAM)
        request.connection.touch()

    proxies.on_request = refuse
    (answer,) = answers_of(proxies, key(proxies.hbone.address[1]))

    assert isinstance(answer, TunnelStream)
    assert proxies.loop.do(lambda: proxies.pool.statistics().handshakes) == 2
    proxies.loop.do(answer.abort)


def test_retiring_a_destination(proxies: Any) -> None:
    """A removed workload's connections end with their last stream; new requests dial anew."""
    client, app = proxies.pair()
    proxies.loop.do(lambda: proxies.pool.close_where(lambda each: each.destination_uid == "uid-b"))
    other, far = proxies.pair()
    assert proxies.loop.do(lambda: proxies.pool.statistics().handshakes) == 2
    client.sendall(b"old")
    assert app.recv(10) == b"old"
    for sock in (client, app, other, far):
        sock.close()

    proxies.loop.until(lambda: proxies.pool.statistics().connections == 1)


def test_refusals_leave_the_pool_in_order(proxies: Any) -> None:
    """Fifty denials are fifty answers over one connection."""
    proxies.on_request = lambda request: request.refuse(403)
    answers = answers_of(proxies, key(proxies.hbone.address[1]), 50)

    assert [answer.status for answer in answers if isinstance(answer, TunnelRefused)] == [403] * 50
    statistics = proxies.loop.do(lambda: proxies.pool.statistics())
    assert (statistics.connections, statistics.streams, statistics.handshakes) == (1, 0, 1)


@pytest.mark.parametrize("seconds", [400.0])
def test_idle_connections_go(proxies: Any, seconds: float) -> None:
    """Five minutes without a stream, and the descriptor is free."""
    client, app = proxies.pair()
    client.close()
    app.close()
    proxies.loop.until(lambda: len(proxies.outbound) == 1)
    now = proxies.loop.reactor.now() + seconds
    proxies.loop.do(lambda: proxies.pool._obey(proxies.pool._plan.tick(now)))

    proxies.loop.until(lambda: proxies.pool.statistics().connections == 0)
    assert not isinstance(proxies.tunnels[0], TunnelStream)
    proxies.loop.until(lambda: proxies.tunnels[0].closed)
