"""What follows from a look at a pod."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.redirect.attestation_plan import (
    ARRIVAL_SECONDS,
    FIRST_RETRY_SECONDS,
    GONE_SECONDS,
    HELD_SECONDS,
    LAST_RETRY_SECONDS,
    MAX_REPAIRS,
    REPAIRS_SECONDS,
    ZTUNNEL_SECONDS,
    Fine,
    GiveUp,
    Listeners,
    Namespace,
    Past,
    Repair,
    Rules,
    Seen,
    Verdict,
    Wait,
    What,
    Ztunnel,
    decide,
    retry_delay,
)

GONE = Seen(namespace=Namespace.GONE)
OTHER = Seen(namespace=Namespace.OTHER)
FOREIGN = Seen(listeners=Listeners.FOREIGN, detail="port 15001 is taken by nginx (pid 7)")
MISSING = Seen(listeners=Listeners.MISSING, detail="nobody listens on port 15006")
UNSERVED = f"{MISSING.detail}, and no ztunnel serves this node"
HELD = Seen(listeners=Listeners.HELD, detail="nobody accepts")
REPAIR_RULES = Repair(What.RULES, "somebody changed its redirection rules")
DIFFER = Seen(rules=Rules.DIFFER)

seens = st.builds(
    Seen,
    namespace=st.sampled_from(Namespace),
    listeners=st.sampled_from(Listeners),
    rules=st.sampled_from(Rules),
)


def verdict(seen: Seen, wrong_for: float = 0.0, ztunnel: Ztunnel = Ztunnel.THERE) -> Verdict:
    return decide(seen, Past(wrong_since=100.0 - wrong_for), 100.0, ztunnel)[0]


@pytest.mark.parametrize(
    ("seen", "wrong_for", "ztunnel", "expected"),
    [
        (Seen(), 0, Ztunnel.THERE, Fine()),
        (Seen(), 0, Ztunnel.AWAY, Fine()),
        (GONE, 0, Ztunnel.THERE, Wait()),
        (GONE, GONE_SECONDS, Ztunnel.THERE, GiveUp("its network namespace is gone")),
        (OTHER, 0, Ztunnel.THERE, Repair(What.NAMESPACE, "its network namespace was replaced")),
        (FOREIGN, 0, Ztunnel.THERE, GiveUp(FOREIGN.detail)),
        (FOREIGN, 0, Ztunnel.ARRIVING, Wait()),
        (FOREIGN, ZTUNNEL_SECONDS, Ztunnel.ARRIVING, GiveUp(FOREIGN.detail)),
        (FOREIGN, 0, Ztunnel.AWAY, Wait()),
        (FOREIGN, ZTUNNEL_SECONDS, Ztunnel.AWAY, GiveUp(FOREIGN.detail)),
        (MISSING, 0, Ztunnel.THERE, Repair(What.LISTENERS, MISSING.detail)),
        (MISSING, 0, Ztunnel.AWAY, Wait()),
        (MISSING, ZTUNNEL_SECONDS, Ztunnel.AWAY, GiveUp(UNSERVED)),
        (MISSING, ZTUNNEL_SECONDS, Ztunnel.ARRIVING, Wait()),
        (MISSING, ARRIVAL_SECONDS, Ztunnel.ARRIVING, GiveUp(UNSERVED)),
        (HELD, 0, Ztunnel.AWAY, Wait()),
        (HELD, HELD_SECONDS, Ztunnel.AWAY, GiveUp(HELD.detail)),
        (dataclasses.replace(HELD, rules=Rules.DIFFER), 0, Ztunnel.AWAY, REPAIR_RULES),
        (DIFFER, 0, Ztunnel.AWAY, Repair(What.RULES, "somebody changed its redirection rules")),
    ],
)  # fmt: skip
def test_the_table(seen: Seen, wrong_for: float, ztunnel: Ztunnel, expected: Verdict) -> None:
    """One row of the module's table each."""
    assert verdict(seen, wrong_for, ztunnel) == expected


def test_what_leads_nowhere_is_mended_before_what_leads_past() -> None:
    """Rules without listeners cut a pod off; a pod without rules only goes past the mesh."""
    both = Seen(listeners=Listeners.MISSING, rules=Rules.DIFFER, detail="nobody listens")

    assert isinstance(found := verdict(both), Repair)
    assert found.what is What.LISTENERS


def test_time_runs_from_the_first_wrong_look_and_a_good_one_ends_it() -> None:
    """Two short troubles are not a long one."""
    _, past = decide(GONE, Past(), 10.0, Ztunnel.THERE)
    assert past.wrong_since == 10.0
    _, past = decide(Seen(), past, 11.0, Ztunnel.THERE)
    assert past.wrong_since is None
    found, past = decide(GONE, past, 10.0 + GONE_SECONDS, Ztunnel.THERE)
    assert found == Wait()


def test_a_fight_is_given_up() -> None:
    """Somebody in the pod flushes its rules all the time: it is not enrolled, whatever we do."""
    past, seen = Past(), []
    for number in range(MAX_REPAIRS + 1):
        found, past = decide(DIFFER, past, float(number), Ztunnel.THERE)
        seen.append(type(found))

    assert seen == [Repair] * MAX_REPAIRS + [GiveUp]
    found, past = decide(DIFFER, past, REPAIRS_SECONDS + MAX_REPAIRS, Ztunnel.THERE)
    assert isinstance(found, Repair)
    assert past.repaired == (REPAIRS_SECONDS + MAX_REPAIRS,)


@given(seens, st.sampled_from(Ztunnel), st.floats(0, 1e6), st.lists(st.floats(0, 1e6), max_size=30))
def test_a_pod_is_fine_exactly_if_all_is_as_it_should_be(
    seen: Seen, ztunnel: Ztunnel, now: float, repaired: list[float]
) -> None:
    """No past and no ztunnel makes a wrong pod a good one; and memory is bounded."""
    found, past = decide(seen, Past(repaired=tuple(repaired)), now, ztunnel)

    assert isinstance(found, Fine) == (seen == Seen())
    assert len(past.repaired) <= len(repaired) + 1


@given(seens, st.sampled_from(Ztunnel))
def test_nothing_is_waited_for_without_end(seen: Seen, ztunnel: Ztunnel) -> None:
    """After the longest patience there is an act."""
    assert verdict(seen, ARRIVAL_SECONDS, ztunnel) != Wait()


def test_attempts_on_the_lost_grow_rare_and_never_stop() -> None:
    """From a second to half a minute."""
    delays = [retry_delay(number) for number in range(50)]

    assert (delays[0], delays[-1]) == (FIRST_RETRY_SECONDS, LAST_RETRY_SECONDS)
    assert delays == sorted(delays)
