"""Whatever happens in whatever order, the plan keeps its books."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ambient.model.identity import SpiffeId
from ambient.model.pool_plan import Assign, Close, Fail, Open, PoolKey, PoolPlan

WEB = SpiffeId("cluster.local", "shop", "web")
KEYS = [PoolKey("a", WEB, uid, "10.0.0.1", 15008, frozenset()) for uid in "bc"]
STEPS = ["request", "opened", "failed", "released", "retire", "gone", "limited", "tick"]


@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 7)), max_size=60), st.integers(1, 3))
def test_every_request_is_answered_once_or_waits(steps: list[tuple[str, int]], limit: int) -> None:
    """A request that nobody answers is a connection that hangs."""
    plan = PoolPlan(max_streams=limit, idle_seconds=5)
    opening: set[int] = set()
    streams: dict[int, int] = {}
    asked = answered = 0
    now = 0.0
    for step, choice in steps:
        now += 1
        found: list[Any] = []
        some = sorted(opening)[choice % len(opening)] if opening else 0
        live = sorted(streams)[choice % len(streams)] if streams else 0
        match step:
            case "request":
                found = plan.request(KEYS[choice % 2], f"r{asked}", now)
                asked += 1
            case "opened" if some:
                opening.discard(some)
                streams[some] = 0
                found = plan.opened(some, now)
            case "failed" if some:
                opening.discard(some)
                found = plan.failed(some)
            case "released" if live and streams[live]:
                streams[live] -= 1
                found = plan.released(live, now)
            case "gone" if live:
                del streams[live]
                found = plan.gone(live)
            case "retire" if live or some:
                found = plan.retire(live or some)
            case "limited" if live:
                found = plan.limited(live, limit)
            case "tick":
                found = plan.tick(now)
        for instruction in found:
            match instruction:
                case Open(_, number):
                    opening.add(number)
                case Assign(_, number, _):
                    streams[number] += 1
                    answered += 1
                    assert streams[number] <= limit
                case Fail():
                    answered += 1
                case Close(number):
                    assert not streams.pop(number, 0)
        plan.validate()
        assert plan.waiting() == asked - answered
