"""What is left for new work: who is refused, who waits, and that it heals by itself."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from ambient.engine.dial import dial
from ambient.engine.headroom import FULL_SHARE, RESERVED_DESCRIPTORS, TIGHT_SHARE, Headroom
from ambient.engine.listener import Listener
from ambient.engine.netns import listen_in


@pytest.mark.parametrize(
    ("limit", "accepts_below", "dials_below"),
    [(1024, 1024 - RESERVED_DESCRIPTORS, 1024 - RESERVED_DESCRIPTORS // 2), (256, 192, 224), (64, 48, 56)],
    ids=["usual", "a-quarter-at-the-most", "tiny"],
)
def test_what_is_kept_for_what_is_open(limit: int, accepts_below: int, dials_below: int) -> None:
    """Work that was accepted needs a descriptor more: so dials go on when accepting has ended."""
    headroom = Headroom()
    headroom.limit_descriptors(limit)

    assert (headroom.accepts_below, headroom.dials_below) == (accepts_below, dials_below)
    assert not headroom.refuses(accepts_below - 1)
    assert headroom.refuses(accepts_below)
    assert headroom.refusals == 1


def test_without_limits_nobody_is_refused() -> None:
    """A waypoint or a test that sets none."""
    assert not Headroom().refuses(1_000_000)


@pytest.mark.parametrize(
    ("memory", "tight", "full"),
    [(0.0, False, False), (TIGHT_SHARE, True, False), (FULL_SHARE, True, True)],
)
def test_memory_has_two_marks(memory: float, tight: bool, full: bool) -> None:
    """First new work is refused, then it is not even looked at."""
    headroom, reasons = Headroom(), list[str]()
    headroom.on_refused = reasons.append
    headroom.memory = memory

    assert (headroom.tight, headroom.full) == (tight, full)
    assert headroom.refuses(0) is tight
    assert reasons == ["memory"] * tight


@pytest.fixture
def accepted(loop: Any) -> Iterator[tuple[list[socket.socket], tuple[str, int]]]:
    """What a listener took, and where it listens."""
    taken: list[socket.socket] = []
    listener = loop.do(lambda: Listener(loop.reactor, listen_in(None, 0, host="127.0.0.1"), taken.append))
    yield taken, listener.address
    loop.do(listener.close)
    for sock in taken:
        sock.close()


def test_one_too_many_is_reset_and_those_behind_it_are_served_later(
    loop: Any, accepted: tuple[list[socket.socket], tuple[str, int]]
) -> None:
    """An end of file would look like an empty answer; a closed queue like a dead host."""
    taken, address = accepted
    headroom = loop.reactor.headroom
    loop.do(lambda: setattr(headroom, "accepts_below", 0))
    with socket.create_connection(address) as refused:
        refused.settimeout(20)
        with pytest.raises(ConnectionResetError):
            refused.recv(1)
        with socket.create_connection(address):
            assert taken == []
            loop.do(lambda: setattr(headroom, "accepts_below", 1 << 30))
            loop.until(lambda: len(taken) == 1)
    assert headroom.refusals == 1


def test_when_memory_is_full_the_queue_waits(
    loop: Any, accepted: tuple[list[socket.socket], tuple[str, int]]
) -> None:
    """Even to refuse costs something."""
    taken, address = accepted
    headroom = loop.reactor.headroom
    loop.do(lambda: setattr(headroom, "memory", 1.0))
    with socket.create_connection(address):
        loop.until(lambda: headroom.refusals >= 2)
        assert taken == []
        loop.do(lambda: setattr(headroom, "memory", 0.1))
        loop.until(lambda: len(taken) == 1)


def test_a_dial_beyond_the_mark_fails_as_at_the_limit(
    loop: Any, accepted: tuple[list[socket.socket], tuple[str, int]]
) -> None:
    """Its owner has an answer for that already; the last descriptors stay free."""
    _, address = accepted
    results: list[Any] = []
    loop.do(lambda: setattr(loop.reactor.headroom, "dials_below", 0))

    loop.do(lambda: dial(loop.reactor, address, results.append))

    loop.until(lambda: results)
    assert results[0].errno == errno.EMFILE
