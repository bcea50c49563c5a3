"""nf_tables messages: batches whole, every term encoded, dumps compared with what was meant.

That the kernel understands them, and means the same, is shown in tests/netns/test_rules.py.
"""

from __future__ import annotations

import pytest

from ambient.wire import netlink, nft_dump, nft_encode
from ambient.wire.netlink import NLM_F_ACK, NLM_F_EXCL, Message, Request
from ambient.wire.nft import (
    DSTNAT,
    L4,
    Accept,
    Address,
    Base,
    Chain,
    Chance,
    ConnectionMark,
    Count,
    DestinationPort,
    End,
    Goto,
    Hook,
    Interface,
    MarkConnection,
    Masquerade,
    PacketMark,
    Redirect,
    Reject,
    RestoreMark,
    Rule,
    Syn,
    Table,
    Term,
    ToProxy,
    ToThisHost,
    Translate,
    Translated,
    Transport,
    Way,
)

RULE: Rule = (Syn(), Redirect(15001))
TABLE = Table("t", (Chain("out", (RULE, (Accept(),)), Base("nat", Hook.OUTPUT, DSTNAT)), Chain("x", ())))


def kinds(requests: list[Request]) -> list[int]:
    return [request.kind & 0xFF for request in requests]


def dumped(rule: Rule, chain: str = "out", table: str = "t", extra: bytes = b"") -> nft_dump.DumpedRule:
    """The rule as the kernel would list it, each expression with an attribute of the kernel's own."""
    elements = (
        netlink.attribute(1, netlink.string(1, name) + netlink.attribute(2, values + extra))
        for name, values in nft_encode.expressions(rule)
    )
    body = bytes(4) + netlink.string(1, table) + netlink.string(2, chain)
    return nft_dump.decode_rule(Message(0, 0, 1, body + netlink.attribute(4, b"".join(elements))))


def test_creation_is_one_batch_that_never_touches_a_standing_table() -> None:
    """Fast because nothing is deleted, safe because of EXCL."""
    requests = nft_encode.create(TABLE)

    assert kinds(requests) == [16, 0, 3, 3, 6, 6, 17]
    assert requests[1].flags & NLM_F_EXCL
    assert [bool(request.flags & NLM_F_ACK) for request in requests] == [False, True, *[False] * 5]


def test_refilling_empties_every_chain_before_it_fills_one() -> None:
    """Chains stay, so translated connections do."""
    requests = nft_encode.refill(TABLE)

    assert kinds(requests) == [16, 0, 3, 3, 8, 8, 6, 6, 17]
    assert not requests[1].flags & NLM_F_EXCL


def test_replacement_and_deletion_work_whether_or_not_it_stands() -> None:
    """Create, then delete: so deleting never fails."""
    assert kinds(nft_encode.replace(TABLE)) == [16, 0, 2, 0, 3, 3, 6, 6, 17]
    assert kinds(nft_encode.delete("t")) == [16, 0, 2, 17]


def test_a_batch_can_be_cut_where_the_kernel_takes_no_more() -> None:
    """Whole requests in order, each slice a batch of its own."""
    batch = nft_encode.replace(TABLE)

    assert [kinds(part) for part in nft_encode.slices(batch, 1)] == [[16, k, 17] for k in kinds(batch)[1:-1]]
    assert nft_encode.slices(batch, 100_000) == [batch]


@pytest.mark.parametrize(
    ("term", "names"),
    [
        (PacketMark(1, 0xFFF), ["meta", "bitwise", "cmp"]),
        (ConnectionMark(1, 0xFFF), ["ct", "bitwise", "cmp"]),
        (Translated(), ["ct", "bitwise", "cmp"]),
        (Interface(Way.IN, "lo"), ["meta", "cmp"]),
        (Interface(Way.OUT, "lo"), ["meta", "cmp"]),
        (Address(End.SOURCE, "10.0.0.1"), ["meta", "cmp", "payload", "cmp"]),
        (Address(End.DESTINATION, "fd00::/64"), ["meta", "cmp", "payload", "cmp"]),
        (Address(End.DESTINATION, "10.96.0.0/12"), ["meta", "cmp", "payload", "bitwise", "cmp"]),
        (DestinationPort(L4.UDP, 53), ["meta", "cmp", "payload", "cmp"]),
        (DestinationPort(L4.TCP, 15008, negated=True), ["meta", "cmp", "payload", "cmp"]),
        (Syn(), ["meta", "cmp", "payload", "bitwise", "cmp"]),
        (ToThisHost(), ["fib", "cmp"]),
        (Chance(3), ["numgen", "cmp"]),
        (Accept(), ["immediate"]),
        (Goto("x"), ["immediate"]),
        (Count(), ["counter"]),
        (MarkConnection(0x111, 0xFFF), ["ct", "bitwise", "ct"]),
        (RestoreMark(), ["ct", "meta"]),
        (ToProxy(15006), ["immediate", "tproxy"]),
        (Redirect(15001), ["immediate", "redir"]),
        (Translate("10.0.0.1", 80), ["immediate", "immediate", "nat"]),
        (Translate("fd00::1", 80), ["immediate", "immediate", "nat"]),
        (Masquerade(), ["masq"]),
        (Reject(), ["reject"]),
        (Reject(reset=True), ["reject"]),
        (Transport(L4.TCP), ["meta", "cmp"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_every_term_is_expressions(term: Term, names: list[str]) -> None:
    """In the kernel's words and order."""
    assert [name for name, _ in nft_encode.expressions((term,))] == names


def test_a_stranger_is_no_term() -> None:
    """A forgotten case must not become an empty rule, which matches everything."""
    with pytest.raises(TypeError):
        nft_encode.expressions(("accept",))  # type: ignore[arg-type]


def test_a_rule_stands_if_the_kernel_lists_it_with_more_of_its_own() -> None:
    """Counters and defaults are the kernel's business."""
    listed = [dumped(RULE, extra=netlink.be32(99, 1)), dumped((Accept(),))]

    assert nft_dump.stands(TABLE, listed)
    assert nft_dump.stands(TABLE, [*listed, dumped(RULE, table="other")])


@pytest.mark.parametrize(
    "listed",
    [
        [],
        [dumped(RULE)],
        [dumped((Accept(),)), dumped(RULE)],
        [dumped((Syn(), Redirect(1))), dumped((Accept(),))],
        [dumped((Syn(), Accept())), dumped((Accept(),))],
        [dumped(RULE), dumped((Accept(),)), dumped((Accept(),), chain="y")],
        [dumped(RULE), dumped((Accept(),)), dumped((Accept(),), chain="x")],
    ],
    ids=["nothing", "missing", "order", "another-port", "another-act", "foreign-chain", "too-many"],
)
def test_anything_else_does_not_stand(listed: list[nft_dump.DumpedRule]) -> None:
    """What is a little different may capture nothing, or everything."""
    assert not nft_dump.stands(TABLE, listed)


def test_counters_are_read() -> None:
    """Packets and bytes, in network order; a rule without a counter counted nothing."""
    values = netlink.attribute(1, (900).to_bytes(8, "big")) + netlink.attribute(2, (3).to_bytes(8, "big"))

    assert nft_dump.counts(nft_dump.DumpedRule("t", "c", (("meta", b""), ("counter", values)))) == (3, 900)
    assert nft_dump.counts(dumped(RULE)) == (0, 0)


def test_a_chain_is_named_with_its_table() -> None:
    """Chains of other tables are no sign of ours."""
    body = bytes(4) + netlink.string(1, "t") + netlink.string(3, "out")

    assert nft_dump.decode_chain(Message(0, 0, 1, body)) == ("t", "out")
    assert nft_encode.dump_rules("t").flags == nft_encode.dump_chains().flags == netlink.NLM_F_DUMP
