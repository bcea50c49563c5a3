"""The rules of a captured and of a draining pod, as sentences; tests/netns/test_rules.py asks kernels."""

from __future__ import annotations

from ambient.redirect import plan, text
from ambient.redirect.plan import Capture, capture_plan, drain_plan
from ambient.wire.nft import Chain, Redirect, Syn, Table


def chain(table: Table, name: str) -> Chain:
    return next(each for each in table.chains if each.name == name)


def lines(table: Table, name: str) -> list[str]:
    return [text.format_rule(rule) for rule in chain(table, name).rules]


def test_only_the_first_packet_of_a_connection_is_redirected() -> None:
    """The rest of an old connection would be taken for a new one."""
    rules = chain(capture_plan(Capture()), "out").rules

    assert rules[-1] == (Syn(), Redirect(15001))
    assert not any(isinstance(term, Redirect) for rule in rules[:-1] for term in rule)


def test_the_proxy_itself_and_the_probes_are_exempt_before_anything_is_captured() -> None:
    """A loop, or a probe that asks the proxy instead of the application."""
    table = capture_plan(Capture())

    assert lines(table, "out")[:-1] == [
        "meta mark & 0xfff == 0x539 accept",
        "meta mark & 0xfff == 0x111 accept",
        'oifname "lo" accept',
        "ip daddr 169.254.7.127 accept",
        "ip6 daddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff accept",
    ]
    assert lines(table, "pre")[1:] == [
        'iifname "lo" accept',
        "ip saddr 169.254.7.127 accept",
        "ip6 saddr fd16:9254:7127:1337:ffff:ffff:ffff:ffff accept",
        "tcp dport != 15008 fib daddr type local tproxy to :15006 accept",
        "tcp dport 15008 accept",
        "tcp flags & (fin|syn|rst|ack) == syn fib daddr type local drop",
    ]


def test_dns_is_captured_where_asked() -> None:
    """Both protocols, before the rule for all TCP."""
    out = lines(capture_plan(Capture(dns=True)), "out")

    assert out[-3:-1] == ["tcp dport 53 redirect to :15053", "udp dport 53 redirect to :15053"]


def test_draining_captures_nothing_and_keeps_every_chain() -> None:
    """The way back to the proxy stays; so does the NAT chain, or conntrack forgets."""
    full, draining = capture_plan(Capture()), drain_plan()

    assert [(c.name, c.base) for c in full.chains] == [(c.name, c.base) for c in draining.chains]
    assert lines(draining, "pre") == lines(full, "pre")[:1]
    assert lines(draining, "out_route") == lines(full, "out_route")
    assert lines(draining, "out") == []


def test_a_sidecars_rules_are_its_own() -> None:
    """Else the agent would find them, and release a pod that was never its."""
    mine, sidecars = capture_plan(Capture()), capture_plan(Capture(table=plan.SIDECAR_TABLE))

    assert mine.name != sidecars.name
    assert mine.chains == sidecars.chains
