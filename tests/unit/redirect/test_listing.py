"""A pod's redirection as text."""

from __future__ import annotations

import pytest

from ambient.redirect import listing
from ambient.redirect.listing import Found
from ambient.redirect.plan import Capture, capture_plan, drain_plan
from ambient.wire.nft import Table
from ambient.wire.nft_dump import DumpedRule
from ambient.wire.nft_encode import expressions

CAPTURE = capture_plan(Capture())
KNOWN = (CAPTURE, drain_plan())


def kernel(table: Table, *extra: DumpedRule) -> Found:
    """The kernel as it is when *table* was put, with *extra* at the end."""
    rules = [
        DumpedRule(table.name, chain.name, tuple(expressions(rule)))
        for chain in table.chains
        for rule in chain.rules
    ]
    return Found(
        chains=frozenset(chain.name for chain in table.chains),
        rules=(*rules, *extra),
        routing_rules=frozenset({0, 1}),
        routes=frozenset({0, 1}),
    )


@pytest.mark.parametrize("table", KNOWN, ids=["capture", "drain"])
def test_what_was_put_reads_like_the_plan(table: Table) -> None:
    """Else every look at a healthy pod would alarm somebody."""
    assert listing.difference(listing.planned(table), listing.standing(kernel(table), KNOWN)) == []


def test_nothing_planned_and_nothing_there_is_no_difference() -> None:
    """A pod that is not enrolled."""
    assert listing.planned(None) == listing.standing(Found(), KNOWN) == []


def test_a_missing_a_foreign_and_a_stale_thing_show() -> None:
    """By the very line that is wrong."""
    foreign = DumpedRule("ambient", "out", (("meta", b""), ("immediate", b"")))
    found = kernel(CAPTURE, foreign)
    broken = Found(
        chains=found.chains | {"extra"},
        rules=found.rules[1:],
        routing_rules=frozenset({0}),
        routes=found.routes,
    )

    lines = listing.difference(listing.planned(CAPTURE), listing.standing(broken, KNOWN))

    changed = [line for line in lines[2:] if line[0] in "+-"]
    assert sorted(changed) == sorted(
        [
            "-    meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111 accept",
            "+    # not ours: meta immediate",
            "+  chain extra {",
            "+  }",
            "-# ip -6 rule add fwmark 0x111/0xfff pref 32764 lookup 100",
        ]
    )


def test_a_removed_table_is_all_minus() -> None:
    """Somebody flushed the rules."""
    lines = listing.difference(listing.planned(CAPTURE), listing.standing(Found(), KNOWN))

    assert all(line.startswith("-") for line in lines[3:])
    assert len(lines) > 20
