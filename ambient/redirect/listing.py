"""A pod's redirection as lines of text: what should stand in its namespace, and what does. Pure.

Both in nft's words, so that a person can read them and a difference of the two is a difference of the
rules; a rule of the kernel that is none of ours is named by its expressions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ambient.redirect import text
from ambient.redirect.plan import LOCAL_ROUTES, ROUTING_RULES, ROUTING_TABLE
from ambient.wire.nft import Chain, Table
from ambient.wire.nft_dump import DumpedRule, is_rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a namespace holds of ours.

    Attributes:
        chains: Names of the chains of our table; none if there is no such table.
        routing: Which of ``ROUTING_RULES`` are there, by position, and which of ``LOCAL_ROUTES``.
    """

    chains: frozenset[str] = frozenset()
    rules: tuple[DumpedRule, ...] = ()
    routing_rules: frozenset[int] = frozenset()
    routes: frozenset[int] = frozenset()


def planned(table: Table | None) -> list[str]:
    """The lines of what should stand; none for a pod that is not captured."""
    if table is None:
        return []
    everything = range(len(ROUTING_RULES))
    return [*text.format_table(table).splitlines(), *_routing(everything, everything)]


def standing(found: Found, known: Sequence[Table]) -> list[str]:
    """The lines of what stands.

    Args:
        known: Tables whose rules can be named, the most likely first.
    """
    lines = [*_table(found, known)] if found.chains else []
    return [*lines, *_routing(sorted(found.routing_rules), sorted(found.routes))]


def difference(should: Sequence[str], does: Sequence[str]) -> list[str]:
    """A unified difference; none if the two are the same."""
    return list(difflib.unified_diff(should, does, "plan", "kernel", lineterm="", n=len(should)))


def _table(found: Found, known: Sequence[Table]) -> Iterable[str]:
    like = known[0]
    order = [chain.name for chain in like.chains]
    mine = [name for name in order if name in found.chains]
    others = sorted(found.chains - set(order))
    # Laid out by the very code that lays out the plan; its rules are put in afterwards.
    bases = {chain.name: chain.base for chain in like.chains}
    yield f"table inet {like.name} {{"
    for name in [*mine, *others]:
        bare = text.format_table(Table(like.name, (Chain(name, (), bases.get(name)),))).splitlines()
        yield from bare[1:-2]
        yield from (f"    {_words(rule, known)}" for rule in found.rules if rule.chain == name)
        yield bare[-2]
    yield "}"


def _words(dumped: DumpedRule, known: Sequence[Table]) -> str:
    for table in known:
        for chain in table.chains:
            for rule in chain.rules:
                if is_rule(rule, dumped):
                    return text.format_rule(rule)
    return f"# not ours: {' '.join(name for name, _ in dumped.expressions)}"


def _routing(rules: Iterable[int], routes: Iterable[int]) -> Iterable[str]:
    for index in rules:
        rule = ROUTING_RULES[index]
        family = "-6 " if ":" in LOCAL_ROUTES[index] else ""
        mark = f"fwmark {rule.mark:#x}/{rule.mask:#x}"
        yield f"# ip {family}rule add {mark} pref {rule.priority} lookup {rule.table}"
    for index in routes:
        family = "-6 " if ":" in LOCAL_ROUTES[index] else ""
        yield f"# ip {family}route add local {LOCAL_ROUTES[index]} dev lo table {ROUTING_TABLE}"
