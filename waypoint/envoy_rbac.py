"""Authorization policies as a real Envoy enforces them. Pure.

Envoy's RBAC pairs permissions (what is reached) with principals (who comes); our matches mix both. So each
rule is brought to a disjunction of plain conjunctions first, each of which separates.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator

from ambient.model.policy import ANYTHING, Action, Match, MatchKind, Policy, StringMatch
from waypoint.envoy_tls import Json, typed

# Clauses multiply. A policy beyond this is turned into one that refuses: what is not understood is refused.
MAX_CONJUNCTIONS = 256

_ANY: Json = {"any": True}


def rbac_filters(policies: Iterable[Policy], *, http: bool) -> list[Json]:
    """The filters that enforce *policies*: DENY first, then ALLOW; none if there is nothing to enforce.

    Args:
        http: For a connection manager (answers 403) instead of a connection (closes it).
    """
    every = sorted(policies, key=lambda policy: policy.key)
    found = []
    for action in (Action.DENY, Action.ALLOW):
        mine = [policy for policy in every if policy.action is action]
        if mine:
            found.append(_filter(action, mine, http))
    return found


def _filter(action: Action, policies: list[Policy], http: bool) -> Json:
    name = f"envoy.filters.{'http' if http else 'network'}.rbac"
    entries = {
        f"{policy.key}/{number}": entry
        for policy in policies
        for number, entry in enumerate(_entries(policy))
    }
    rules = {"action": action.name, "policies": entries}
    kind = f"filters.{'http' if http else 'network'}.rbac.v3.RBAC"
    more = {} if http else {"stat_prefix": f"rbac_{action.name.lower()}_"}
    return {"name": name, "typed_config": typed(kind, rules=rules, **more)}


def _entries(policy: Policy) -> Iterator[Json]:
    found = list(itertools.islice(_conjunctions(policy), MAX_CONJUNCTIONS + 1))
    if len(found) > MAX_CONJUNCTIONS:
        found = [ANYTHING_AT_ALL] if policy.action is Action.DENY else []
    needs_identity = policy.action is Action.ALLOW
    for matches in found:
        permissions = [each for match in matches for each in _permissions(match)]
        principals = [each for match in matches for each in _principals(match, needs_identity)]
        yield {
            "permissions": [{"and_rules": {"rules": permissions or [_ANY]}}],
            "principals": [{"and_ids": {"ids": principals or [_ANY]}}],
        }


ANYTHING_AT_ALL: tuple[Match, ...] = ()


def _conjunctions(policy: Policy) -> Iterator[tuple[Match, ...]]:
    """Every way in which *policy* can match: one match of each clause of one rule."""
    for rule in policy.rules:
        if rule == ANYTHING:
            yield ANYTHING_AT_ALL
            continue
        # An empty clause limits nothing, an empty match never matches.
        clauses = [[match for match in clause if not match.is_empty()] for clause in rule if clause]
        yield from itertools.product(*clauses)


def _permissions(match: Match) -> Iterator[Json]:
    yield from _either([{"destination_port": port} for port in match.destination_ports], "or_rules", "rules")
    yield from _either([{"destination_ip": _cidr(ip)} for ip in match.destination_ips], "or_rules", "rules")
    yield from ({"not_rule": {"destination_port": port}} for port in match.not_destination_ports)
    yield from ({"not_rule": {"destination_ip": _cidr(ip)}} for ip in match.not_destination_ips)


def _principals(match: Match, needs_identity: bool) -> Iterator[Json]:
    wanted = (_namespaces(match.namespaces), _accounts(match.service_accounts), _names(match.principals))
    for patterns in wanted:
        yield from _either([_peer(pattern) for pattern in patterns], "or_ids", "ids")
    yield from _either([{"direct_remote_ip": _cidr(ip)} for ip in match.source_ips], "or_ids", "ids")
    unwanted = [
        *_namespaces(match.not_namespaces),
        *_accounts(match.not_service_accounts),
        *_names(match.not_principals),
    ]
    yield from ({"not_id": _peer(pattern)} for pattern in unwanted)
    if unwanted and needs_identity:
        yield _peer(".+")
    yield from ({"not_id": {"direct_remote_ip": _cidr(ip)}} for ip in match.not_source_ips)


def _either(items: list[Json], operator: str, field: str) -> Iterator[Json]:
    if items:
        yield {operator: {field: items}}


def _namespaces(values: tuple[StringMatch, ...]) -> list[str]:
    return [f"spiffe://[^/]+/ns/{_pattern(value, '[^/]')}/sa/[^/]+" for value in values]


def _accounts(values: tuple[str, ...]) -> list[str]:
    pairs = (value.partition("/") for value in values)
    return [f"spiffe://[^/]+/ns/{re.escape(ns)}/sa/{re.escape(account)}" for ns, _slash, account in pairs]


def _names(values: tuple[StringMatch, ...]) -> list[str]:
    return [f"spiffe://{_pattern(value, '.')}" for value in values]


def _pattern(value: StringMatch, anything: str) -> str:
    text = re.escape(value.value)
    match value.kind:
        case MatchKind.EXACT:
            return text
        case MatchKind.PREFIX:
            return f"{text}{anything}*"
        case MatchKind.SUFFIX:
            return f"{anything}*{text}"
        case MatchKind.PRESENCE:
            return f"{anything}+"


def _peer(pattern: str) -> Json:
    return {"authenticated": {"principal_name": {"safe_regex": {"regex": pattern}}}}


def _cidr(network: str) -> Json:
    address, _slash, length = network.partition("/")
    return {"address_prefix": address, "prefix_len": int(length)}
