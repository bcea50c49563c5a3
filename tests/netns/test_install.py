"""How a capture's rules are put in: created where nothing stands, refilled where something does, or not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ambient.engine.netlink import NetlinkSocket
from ambient.redirect import backend, evidence
from ambient.redirect.backend import Standing
from ambient.redirect.plan import Capture, capture_plan, closed_plan, drain_plan
from ambient.wire import nft_encode
from ambient.wire.nft import Chain, Redirect, Table
from tests.lab import in_namespaces, make_netns

CAPTURE = Capture(dns=True)
STANDING: tuple[Table | None, ...] = (None, capture_plan(Capture()), closed_plan(CAPTURE), drain_plan())


@pytest.mark.parametrize("before", STANDING, ids=["nothing", "other-rules", "closed", "draining"])
@in_namespaces
def test_whatever_stood_the_pod_is_captured_and_routed(before: Table | None) -> None:
    """And doing it again changes nothing."""
    netns = make_netns({})
    if before is not None:
        backend.put(netns, before)

    for _ in range(2):
        backend.install(netns, CAPTURE)

        assert backend.read(netns).chains == {"pre", "out_route", "out"}
        assert evidence.RuleReader().stand(netns, CAPTURE)


@pytest.mark.parametrize("before", STANDING[1:], ids=["other-rules", "closed", "draining"])
@in_namespaces
def test_rules_that_come_between_the_look_and_the_batch_are_refilled(before: Table) -> None:
    """The batch that creates is refused as a whole; the next one does not create."""
    netns = make_netns({})
    backend.put(netns, before)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_chains", lambda _nl, _table: set())

        backend.install(netns, CAPTURE)

    assert evidence.RuleReader().stand(netns, CAPTURE)


@in_namespaces
def test_a_rule_that_the_kernel_refuses_takes_all_the_others_along() -> None:
    """No half of a capture ever stands; what was routed is taken away like everything else."""
    netns = make_netns({})
    plan = capture_plan(CAPTURE)
    wrong = [Chain(each.name, (*each.rules, (Redirect(1),)), each.base) for each in plan.chains]
    with pytest.MonkeyPatch.context() as patch:
        batch = tuple(nft_encode.create(replace(plan, chains=tuple(wrong))))
        patch.setattr(backend, "_creation", lambda _capture: batch)

        with pytest.raises(OSError, match="cannot"):
            backend.install(netns, CAPTURE)

    assert backend.standing(netns, CAPTURE) is Standing.NONE
    backend.remove(netns)
    assert not evidence.routing_left_over(netns)


@in_namespaces
def test_several_acts_in_one_datagram_are_refused_one_by_one() -> None:
    """A routing rule that stands is no failure, and hides none."""
    netns = make_netns({})
    with NetlinkSocket(netns) as nl:
        assert nl.refusals(*backend._ROUTING) == []
        again = nl.refusals(*backend._ROUTING)
    assert [type(each) for each in again] == [FileExistsError, FileExistsError]
