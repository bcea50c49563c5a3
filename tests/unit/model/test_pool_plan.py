"""The pool's decisions, one after the other."""

from __future__ import annotations

import dataclasses

from ambient.model.identity import SpiffeId
from ambient.model.pool_plan import Assign, Close, Fail, Open, PoolKey, PoolPlan

WEB, API = SpiffeId("cluster.local", "shop", "web"), SpiffeId("cluster.local", "shop", "api")
KEY = PoolKey("a", WEB, "b", "10.244.2.3", 15008, frozenset((API,)))
OTHER = PoolKey("a", WEB, "c", "10.244.2.4", 15008, frozenset((API,)))


def connected(*, max_streams: int = 100) -> PoolPlan:
    """A plan with connection 1 carrying request "r0"."""
    plan = PoolPlan(max_streams=max_streams)
    assert plan.request(KEY, "r0", 0.0) == [Open(KEY, 1)]
    assert plan.opened(1, 0.0) == [Assign("r0", 1, False)]
    assert plan.limited(1, max_streams) == []
    return plan


def test_the_first_users_share_one_handshake() -> None:
    """No thundering herd on a destination that is slow to answer."""
    plan = PoolPlan()
    assert plan.request(KEY, "r0", 0.0) == [Open(KEY, 1)]
    assert plan.request(KEY, "r1", 0.0) == []
    assert plan.request(OTHER, "r2", 0.0) == [Open(OTHER, 2)]
    assert plan.waiting() == 3

    assert plan.opened(1, 0.0) == [Assign("r0", 1, False)]
    assert plan.request(KEY, "r3", 0.0) == []
    assert plan.limited(1, 100) == [Assign("r1", 1, True), Assign("r3", 1, True)]
    assert plan.waiting() == 1


def test_all_of_them_learn_of_its_failure() -> None:
    """Istio's waiters fail one after the other, ten seconds each."""
    plan = PoolPlan()
    plan.request(KEY, "r0", 0.0)
    plan.request(KEY, "r1", 0.0)

    assert plan.failed(1) == [Fail("r0", 1), Fail("r1", 1)]
    assert plan.failed(1) == []
    assert plan.request(KEY, "r2", 0.0) == [Open(KEY, 2)]


def test_a_full_connection_gets_a_neighbour_and_is_used_again() -> None:
    """A hundred streams each; one that was full is not lost to the pool."""
    plan = connected(max_streams=1)
    assert plan.request(KEY, "r1", 0.0) == [Open(KEY, 2)]
    assert plan.request(KEY, "r2", 0.0) == []
    assert plan.released(1, 1.0) == [Assign("r1", 1, True)]
    assert plan.opened(2, 1.0) == [Assign("r2", 2, False)]
    assert plan.request(KEY, "r3", 1.0) == []
    assert plan.limited(2, 1) == [Open(KEY, 3)]
    assert plan.released(2, 1.0) == [Assign("r3", 2, True)]
    assert plan.opened(3, 1.0) == []


def test_the_peers_limit_counts() -> None:
    """SETTINGS may allow fewer streams than we would use."""
    plan = connected()
    assert plan.limited(1, 1) == []
    assert plan.request(KEY, "r1", 0.0) == [Open(KEY, 2)]
    assert plan.limited(1, 2) == [Assign("r1", 1, True)]
    assert plan.limited(9, 2) == []


def test_a_peer_that_takes_one_stream_at_a_time() -> None:
    """No stream is opened that it would refuse: each gets a connection of its own."""
    plan = PoolPlan()
    plan.request(KEY, "r0", 0.0)
    plan.request(KEY, "r1", 0.0)
    assert plan.opened(1, 0.0) == [Assign("r0", 1, False)]
    assert plan.limited(1, 1) == [Open(KEY, 2)]
    assert plan.opened(2, 0.0) == [Assign("r1", 2, False)]
    assert plan.limited(2, 1) == []
    plan.validate()


def test_a_peer_that_hangs_up_before_its_first_word() -> None:
    """TLS 1.3's late rejection of our certificate: those who wait learn of it, too."""
    plan = PoolPlan()
    plan.request(KEY, "r0", 0.0)
    plan.request(KEY, "r1", 0.0)
    plan.opened(1, 0.0)
    assert plan.gone(1) == [Fail("r1", 1)]
    plan.validate()


def test_an_old_connection_takes_no_more() -> None:
    """However busy it is: what it proved when it was opened may not hold for ever."""
    plan = connected()
    assert plan.tick(3599.0) == []
    assert plan.tick(3600.0) == []
    assert plan.request(KEY, "r1", 3600.0) == [Open(KEY, 2)]
    assert plan.released(1, 3600.0) == [Close(1)]
    plan.validate()


def test_identities_never_share() -> None:
    """Nor do pods of one identity, nor a reused address of another pod."""
    plan = connected()
    for number, change in enumerate(
        ({"source_uid": "x"}, {"source_identity": API}, {"destination_uid": "c"}, {"ip": "10.244.2.9"}), 2
    ):
        other = dataclasses.replace(KEY, **change)  # type: ignore[arg-type]
        assert plan.request(other, "r", 0.0) == [Open(other, number)]


def test_idle_connections_are_closed() -> None:
    """Five minutes without a stream."""
    plan = connected()
    assert plan.tick(1000.0) == []
    plan.released(1, 1000.0)
    assert plan.tick(1299.0) == []
    assert plan.tick(1300.0) == [Close(1)]
    assert plan.released(1, 1300.0) == []
    plan.validate()


def test_a_retired_connection_ends_with_its_last_stream() -> None:
    """GOAWAY, or a policy that forbids the pair: what lives may finish."""
    plan = connected()
    assert plan.retire(1) == []
    assert plan.retire(1) == []
    assert plan.request(KEY, "r1", 0.0) == [Open(KEY, 2)]
    assert plan.released(1, 0.0) == [Close(1)]
    assert plan.retire(9) == []


def test_an_idle_connection_retires_at_once() -> None:
    """Nothing to wait for; by key, when a workload disappears."""
    plan = connected()
    plan.released(1, 0.0)
    assert plan.retire_where(lambda key: key == OTHER) == []
    assert plan.retire_where(lambda key: key.destination_uid == "b") == [Close(1)]
    plan.validate()


def test_a_connection_retired_in_its_handshake() -> None:
    """Its users get another; it is closed when it arrives."""
    plan = PoolPlan()
    plan.request(KEY, "r0", 0.0)
    assert plan.retire(1) == [Open(KEY, 2)]
    assert plan.opened(1, 0.0) == [Close(1)]
    assert plan.opened(2, 0.0) == [Assign("r0", 2, False)]


def test_a_connection_that_is_gone() -> None:
    """Its streams hear of it from the tunnel; the plan only forgets."""
    plan = connected(max_streams=1)
    assert plan.gone(1) == []
    assert plan.gone(1) == []
    assert plan.opened(1, 0.0) == [Close(1)]
    assert plan.request(KEY, "r1", 0.0) == [Open(KEY, 2)]
    assert plan.gone(2) == [Open(KEY, 3)]
