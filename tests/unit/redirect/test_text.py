"""Rules as people and nft read them."""

from __future__ import annotations

import pytest

from ambient.redirect import text
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

TABLE = Table("t", (Chain("out", ((Goto("x"),),), Base("nat", Hook.OUTPUT, DSTNAT)), Chain("x", ())))


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (PacketMark(0x539, 0xFFF), "meta mark & 0xfff == 0x539"),
        (ConnectionMark(0x111, 0xFFF), "ct mark & 0xfff == 0x111"),
        (Translated(), "ct status dnat"),
        (Interface(Way.OUT, "lo"), 'oifname "lo"'),
        (Address(End.SOURCE, "10.0.0.0/8"), "ip saddr 10.0.0.0/8"),
        (Address(End.DESTINATION, "fd00::1"), "ip6 daddr fd00::1"),
        (Transport(L4.TCP), "meta l4proto tcp"),
        (DestinationPort(L4.UDP, 53), "udp dport 53"),
        (DestinationPort(L4.TCP, 15008, negated=True), "tcp dport != 15008"),
        (Syn(), "tcp flags & (fin|syn|rst|ack) == syn"),
        (ToThisHost(), "fib daddr type local"),
        (Chance(3), "numgen random mod 3 0"),
        (Accept(), "accept"),
        (Goto("x"), "goto x"),
        (Count(), "counter"),
        (MarkConnection(0x111, 0xFFF), "ct mark set ct mark & 0xfffff000 | 0x111"),
        (RestoreMark(), "meta mark set ct mark"),
        (ToProxy(15006), "tproxy to :15006"),
        (Redirect(15001), "redirect to :15001"),
        (Translate("10.0.0.1", 80), "meta l4proto { tcp, udp } dnat ip to 10.0.0.1:80"),
        (Translate("fd00::1", 80), "meta l4proto { tcp, udp } dnat ip6 to [fd00::1]:80"),
        (Masquerade(), "masquerade"),
        (Reject(), "reject with icmpx type port-unreachable"),
        (Reject(reset=True), "reject with tcp reset"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_term_has_its_words(term: Term, expected: str) -> None:
    """nft's own, so that it can check ours."""
    assert text.format_rule((term,)) == expected


def test_a_translation_whose_protocol_was_asked_needs_no_guard() -> None:
    """nft wants to read a transport protocol before a port, once."""
    rule = (DestinationPort(L4.TCP, 80), Translate("10.0.0.1", 8080))

    assert text.format_rule(rule) == "tcp dport 80 dnat ip to 10.0.0.1:8080"


def test_chains_stand_before_those_that_lead_to_them() -> None:
    """nft resolves names in order."""
    written = text.format_table(TABLE)

    assert written.index("chain x") < written.index("chain out")
    assert "type nat hook output priority -100; policy accept;" in written


def test_replacement_and_refill_are_single_transactions_of_text() -> None:
    """One file to ``nft -f`` is one transaction."""
    assert text.format_replacement(TABLE) == "table inet t\ndelete table inet t\n" + text.format_table(TABLE)
    refill = text.format_refill(TABLE)
    assert refill.index("flush chain inet t out") < refill.index("goto x")


def test_a_stranger_is_no_term() -> None:
    """As in the encoder."""
    with pytest.raises(TypeError):
        text.format_rule(("accept",))  # type: ignore[arg-type]
