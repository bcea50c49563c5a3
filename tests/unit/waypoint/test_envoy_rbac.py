"""Policies as Envoy reads them; what a real Envoy makes of them is tested in tests/envoy."""

from __future__ import annotations

from typing import Any

from ambient.model.policy import Action, Match, Policy, Scope
from waypoint.envoy_rbac import MAX_CONJUNCTIONS, rbac_filters


def policy(action: Action, *rules: tuple[tuple[Match, ...], ...]) -> Policy:
    return Policy(key="shop/p", namespace="shop", action=action, scope=Scope.NAMESPACE, rules=rules)


def entries(found: dict[str, Any]) -> list[dict[str, Any]]:
    return list(found["typed_config"]["rules"]["policies"].values())


def test_no_policy_is_no_filter() -> None:
    """An unguarded pod pays nothing."""
    assert rbac_filters((), http=True) == []


def test_deny_comes_first() -> None:
    """DENY beats ALLOW in any order of the input."""
    allow, deny = policy(Action.ALLOW, ()), policy(Action.DENY, ())

    filters = rbac_filters((allow, deny), http=False)

    assert [each["typed_config"]["rules"]["action"] for each in filters] == ["DENY", "ALLOW"]
    assert {each["name"] for each in filters} == {"envoy.filters.network.rbac"}


def test_allow_without_rules_lets_nobody_in() -> None:
    """An ALLOW filter without entries refuses everything, as the policy does."""
    (found,) = rbac_filters((policy(Action.ALLOW),), http=True)

    assert found["typed_config"]["rules"] == {"action": "ALLOW", "policies": {}}


def test_clauses_multiply() -> None:
    """(a or b) and (c or d) is four conjunctions; empty clauses limit nothing, empty matches never match."""
    ports = [Match(destination_ports=(port,)) for port in (1, 2, 3, 4)]
    rule = ((ports[0], ports[1]), (), (ports[2], ports[3], Match()))

    (found,) = rbac_filters((policy(Action.DENY, rule),), http=True)

    assert len(entries(found)) == 4


def test_too_many_conjunctions_refuse() -> None:
    """What cannot be expressed in bounds denies everything, or allows nothing."""
    clause = tuple(Match(destination_ports=(port,)) for port in range(1, 8))
    rule = (clause, clause, clause)
    assert len(clause) ** 3 > MAX_CONJUNCTIONS

    deny, allow = rbac_filters((policy(Action.DENY, rule), policy(Action.ALLOW, rule)), http=True)

    (everything,) = entries(deny)
    assert everything["principals"] == [{"and_ids": {"ids": [{"any": True}]}}]
    assert entries(allow) == []
