"""What the kernel says its rules are, and whether they are what we meant.

Floor 1: sans-IO.

The kernel answers a dump with the expressions that it was given and adds values of its own
(defaults, counters, handles). So a rule stands if its expressions have the names that we sent, in
order, and every attribute that we sent has our value: what the kernel adds is its business.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ambient.wire.netlink import Message, attribute_list, attributes, text
from ambient.wire.nft import Rule, Table
from ambient.wire.nft_encode import (
    NFTA_CHAIN_NAME,
    NFTA_CHAIN_TABLE,
    NFTA_EXPR_DATA,
    NFTA_EXPR_NAME,
    NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_TABLE,
    expressions,
)

# Behind the family, version and resource id of every nfnetlink message.
_HEADER_BYTES = 4
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2


@dataclass(frozen=True, slots=True)
class DumpedRule:
    """One rule as the kernel has it; *expressions* are names and attributes."""

    table: str
    chain: str
    expressions: tuple[tuple[str, bytes], ...]


def decode_rule(message: Message) -> DumpedRule:
    """Read an NFT_MSG_NEWRULE message."""
    found = attributes(message.body[_HEADER_BYTES:])
    listed = attribute_list(found.get(NFTA_RULE_EXPRESSIONS, b""))
    return DumpedRule(
        table=text(found.get(NFTA_RULE_TABLE, b"")),
        chain=text(found.get(NFTA_RULE_CHAIN, b"")),
        expressions=tuple(_expression(value) for _, value in listed),
    )


def shape(message: Message) -> bytes:
    """A rule's chain and expressions as the kernel wrote them; equal bytes are the same rule."""
    found = attributes(message.body[_HEADER_BYTES:])
    return found.get(NFTA_RULE_CHAIN, b"") + found.get(NFTA_RULE_EXPRESSIONS, b"")


def whole(message: Message) -> bytes:
    """All that was said of a rule, its handle too; not the header, which has the generation in it."""
    return message.body[_HEADER_BYTES:]


def decode_chain(message: Message) -> tuple[str, str]:
    """(table, chain) of an NFT_MSG_NEWCHAIN message."""
    found = attributes(message.body[_HEADER_BYTES:])
    return text(found.get(NFTA_CHAIN_TABLE, b"")), text(found.get(NFTA_CHAIN_NAME, b""))


def stands(table: Table, dumped: Iterable[DumpedRule]) -> bool:
    """Whether *dumped* are exactly the rules of *table*, in order."""
    by_chain: dict[str, list[DumpedRule]] = {}
    for each in dumped:
        if each.table == table.name:
            by_chain.setdefault(each.chain, []).append(each)
    meant = {chain.name: chain.rules for chain in table.chains}
    return by_chain.keys() <= meant.keys() and all(
        len(rules) == len(by_chain.get(name, ()))
        and all(is_rule(rule, each) for rule, each in zip(rules, by_chain.get(name, ()), strict=True))
        for name, rules in meant.items()
    )


def is_rule(rule: Rule, dumped: DumpedRule) -> bool:
    """Whether *dumped* is *rule*."""
    meant = expressions(rule)
    return len(meant) == len(dumped.expressions) and all(
        name == other and _contains(found, values)
        for (name, values), (other, found) in zip(meant, dumped.expressions, strict=True)
    )


def counts(dumped: DumpedRule) -> tuple[int, int]:
    """(packets, bytes) of the rule's first counter; (0, 0) if it has none."""
    for name, values in dumped.expressions:
        if name == "counter":
            found = attributes(values)
            packets, size = found.get(_COUNTER_PACKETS, b""), found.get(_COUNTER_BYTES, b"")
            return int.from_bytes(packets, "big"), int.from_bytes(size, "big")
    return 0, 0


def _expression(element: bytes) -> tuple[str, bytes]:
    found = attributes(element)
    return text(found.get(NFTA_EXPR_NAME, b"")), found.get(NFTA_EXPR_DATA, b"")


def _contains(found: bytes, meant: bytes) -> bool:
    """Whether every attribute of *meant* is in *found* with the same value."""
    there = attributes(found)
    return all(there.get(kind) == value for kind, value in attribute_list(meant))
