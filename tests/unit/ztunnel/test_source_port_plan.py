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


@given(st.integers(0, 65535), st.lists(st.integers(1, 65535), min_size=1, max_size=50))
def test_no_candidate_is_a_port_the_client_may_hold(start: int, clients: list[int]) -> None:
    """The same four numbers twice, and the client's own connection is reset."""
    ports = SourcePorts(start)

    for taken in clients:
        for attempt in range(MAX_ATTEMPTS):
            port = ports.candidate(attempt, taken)
            assert port != taken
            assert port not in EPHEMERAL
            if attempt < FIRST_ATTEMPTS:
                assert FIRST_PORT <= port <= LAST_PORT
            else:
                assert SPARE_FIRST_PORT <= port <= SPARE_LAST_PORT


def test_all_ports_of_the_range_are_used_before_one_comes_again() -> None:
    """A port that has just been used is in TIME_WAIT."""
    ports = SourcePorts(12345)

    seen = [ports.candidate(0, 80) for _ in range(LAST_PORT - FIRST_PORT + 1)]

    assert len(set(seen)) == len(seen)


def test_a_client_that_holds_a_port_of_ours_is_stepped_over() -> None:
    """Its range may not be the default one."""
    assert SourcePorts(0).candidate(0, FIRST_PORT) == FIRST_PORT + 1
    assert SourcePorts(0).candidate(FIRST_ATTEMPTS, SPARE_FIRST_PORT) == SPARE_FIRST_PORT + 1
