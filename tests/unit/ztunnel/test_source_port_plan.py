"""Source ports of spoofed connections never meet the client's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ztunnel.source_port_plan import (
    FIRST_ATTEMPTS,
    FIRST_PORT,
    LAST_PORT,
    MAX_ATTEMPTS,
    SPARE_FIRST_PORT,
    SPARE_LAST_PORT,
    SourcePorts,
)

EPHEMERAL = range(32768, 61000)  # Linux's default ip_local_port_range.


CLIENT = "10.0.0.1"


@given(st.integers(0, 2**16), st.sets(st.integers(1, 65535), max_size=50))
def test_no_candidate_is_a_port_the_client_may_hold(start: int, held: set[int]) -> None:
    """The same four numbers twice, and the client's own connection is reset."""
    ports = SourcePorts(start)
    live = {(CLIENT, port) for port in held}

    for attempt in range(MAX_ATTEMPTS):
        port = ports.candidate(attempt, CLIENT, live)
        assert port not in held
        assert port not in EPHEMERAL
        if attempt < FIRST_ATTEMPTS:
            assert FIRST_PORT <= port <= LAST_PORT
        else:
            assert SPARE_FIRST_PORT <= port <= SPARE_LAST_PORT


def test_all_ports_of_the_range_are_used_before_one_comes_again() -> None:
    """A port that has just been used is in TIME_WAIT."""
    ports = SourcePorts(12345)

    seen = [ports.candidate(0, CLIENT, ()) for _ in range(LAST_PORT - FIRST_PORT + 1)]

    assert len(set(seen)) == len(seen)


def test_another_clients_port_is_no_obstacle() -> None:
    """The address makes the difference."""
    assert SourcePorts(0).candidate(0, CLIENT, {("10.0.0.9", FIRST_PORT)}) == FIRST_PORT


def test_a_client_that_holds_everything_is_tried_all_the_same() -> None:
    """The kernel then says no, in bounded time."""
    live = {(CLIENT, port) for port in range(FIRST_PORT, LAST_PORT + 1)}

    assert FIRST_PORT <= SourcePorts(0).candidate(0, CLIENT, live) <= LAST_PORT
