"""Policies: how conditions combine, and what is reported."""

from __future__ import annotations

import pytest

from ambient.errors import ConfigError, Denied
from ambient.model.identity import SpiffeId
from ambient.model.policy import (
    Action,
    Connection,
    Match,
    Policy,
    Rule,
    Scope,
    StringMatch,
    Verdict,
    decide,
    deny_all,
    enforce,
)

WEB = SpiffeId("cluster.local", "shop", "web")
FROM_WEB = Connection(WEB, "10.244.1.2", "10.244.2.3", 80)
PLAINTEXT = Connection(None, "10.244.1.2", "10.244.2.3", 80)


def names(*values: str) -> tuple[StringMatch, ...]:
    return tuple(StringMatch.parse(value) for value in values)


def policy(action: Action, *rules: Rule, key: str = "shop/p") -> Policy:
    return Policy(key=key, namespace="shop", action=action, scope=Scope.NAMESPACE, rules=rules)


def matches(match: Match, connection: Connection, action: Action = Action.DENY) -> bool:
    return policy(action, ((match,),)).matches(connection)


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("web", "web", "webs"),
        ("we*", "web", "ww"),
        ("*eb", "web", "ebb"),
        ("*", "web", ""),
        ("a.b", "a.b", "aXb"),
    ],
    ids=["exact", "prefix", "suffix", "presence", "dot-is-a-dot"],
)
def test_a_text_condition_compares_as_written(text: str, yes: str, no: str) -> None:
    """Only a star at one end is a wildcard (CVE-2026-39350 was a dot taken for one)."""
    match = StringMatch.parse(text)

    assert (match.matches(yes), match.matches(no)) == (True, False)
    assert str(match) == text


@pytest.mark.parametrize("text", ["", "a*b", "**", "*a*"])
def test_a_star_in_the_middle_is_refused(text: str) -> None:
    """It would match nothing, and nobody would know."""
    with pytest.raises(ConfigError, match=r"is not a name, 'prefix\*'"):
        StringMatch.parse(text)


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (Match(), False),
        (Match(namespaces=names("shop")), True),
        (Match(namespaces=names("other")), False),
        (Match(not_namespaces=names("shop")), False),
        (Match(service_accounts=("shop/web",)), True),
        (Match(service_accounts=("shop/api",)), False),
        (Match(not_service_accounts=("shop/web",)), False),
        (Match(principals=names("cluster.local/ns/shop/sa/web")), True),
        (Match(principals=names("*/sa/api")), False),
        (Match(not_principals=names("*")), False),
        (Match(source_ips=("10.244.0.0/16",)), True),
        (Match(source_ips=("fd00::/8",)), False),
        (Match(not_source_ips=("10.244.1.2/32",)), False),
        (Match(destination_ips=("10.244.2.0/24",)), True),
        (Match(not_destination_ips=("10.244.2.0/24",)), False),
        (Match(destination_ports=(80, 443)), True),
        (Match(destination_ports=(443,)), False),
        (Match(not_destination_ports=(80,)), False),
        (Match(namespaces=names("shop"), destination_ports=(443,)), False),
        (Match(namespaces=names("s*"), not_namespaces=names("shop")), False),
        (Match(not_namespaces=names("other"), not_destination_ports=(443,)), True),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, bool) else None,
)
def test_every_condition_of_a_match_must_hold(match: Match, expected: bool) -> None:
    """Fields are ANDed, values ORed, and a match without any never holds."""
    assert matches(match, FROM_WEB) is expected


@pytest.mark.parametrize(
    ("match", "action", "expected"),
    [
        (Match(principals=names("*")), Action.DENY, False),
        (Match(namespaces=names("*")), Action.DENY, False),
        (Match(service_accounts=("shop/web",)), Action.DENY, False),
        (Match(not_principals=names("*")), Action.DENY, True),
        (Match(not_namespaces=names("evil")), Action.ALLOW, False),
        (Match(not_service_accounts=("shop/evil",)), Action.ALLOW, False),
        (Match(not_principals=names("evil")), Action.ALLOW, False),
        (Match(destination_ports=(80,)), Action.ALLOW, True),
    ],
    ids=["principal", "namespace", "account", "strict", "allow-ns", "allow-sa", "allow-not", "port"],
)
def test_a_peer_without_identity_is_never_taken_for_somebody(
    match: Match, action: Action, expected: bool
) -> None:
    """Plaintext must not slip through "everybody but X"."""
    assert matches(match, PLAINTEXT, action) is expected


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ((), False),
        (((),), True),
        ((((),),), True),
        ((((Match(),),),), False),
        ((((Match(destination_ports=(1,)), Match(destination_ports=(80,))),),), True),
        ((((Match(destination_ports=(80,)),), (Match(namespaces=names("other")),)),), False),
        ((((Match(destination_ports=(1,)),),), ((Match(destination_ports=(80,)),),)), True),
    ],
    ids=["no-rules", "no-clauses", "no-matches", "empty-match", "matches-or", "clauses-and", "rules-or"],
)
def test_rules_combine_as_in_ztunnel(rules: tuple[Rule, ...], expected: bool) -> None:
    """The empties of ztunnel's rbac.rs, case by case."""
    assert policy(Action.DENY, *rules).matches(FROM_WEB) is expected


def test_a_mapped_address_is_the_address() -> None:
    """A dual-stack listener reports IPv4 clients as ::ffff:a.b.c.d."""
    mapped = Connection(WEB, "::ffff:10.244.1.2", "10.244.2.3", 80)

    assert matches(Match(source_ips=("10.244.1.0/24",)), mapped)


ALLOW_WEB = policy(Action.ALLOW, ((Match(namespaces=names("shop")),),), key="shop/allow")
ALLOW_NOBODY = policy(Action.ALLOW, key="shop/nobody")
DENY_80 = policy(Action.DENY, ((Match(destination_ports=(80,)),),), key="shop/deny")


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ((), Verdict(True, "no allow policy guards the workload")),
        ((ALLOW_WEB, ALLOW_NOBODY), Verdict(True, "allowed by: shop/allow", "shop/allow")),
        ((ALLOW_NOBODY,), Verdict(False, "allow policies exist, but none allowed")),
        ((ALLOW_WEB, DENY_80), Verdict(False, "explicitly denied by: shop/deny", "shop/deny")),
        ((deny_all("shop/x"), DENY_80), Verdict(False, "explicitly denied by: shop/deny", "shop/deny")),
        ((deny_all("shop/x"),), Verdict(False, "explicitly denied by: shop/x", "shop/x")),
    ],
    ids=["none", "allow", "allow-nothing", "deny-beats-allow", "smallest-key", "unknown-policy"],
)
def test_deny_beats_allow_and_the_reason_is_stable(policies: tuple[Policy, ...], expected: Verdict) -> None:
    """The access record quotes the reason: it may not depend on order."""
    assert decide(policies, FROM_WEB) == expected
    assert decide(tuple(reversed(policies)), FROM_WEB) == expected


def test_enforce_returns_or_raises() -> None:
    """There is no result that a caller could forget to look at."""
    enforce((ALLOW_WEB,), FROM_WEB)

    with pytest.raises(Denied) as caught:
        enforce((DENY_80,), FROM_WEB)

    assert caught.value.reason == "explicitly denied by: shop/deny"
