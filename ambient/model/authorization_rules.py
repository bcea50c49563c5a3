"""The rules of an AuthorizationPolicy turned into clauses that layer 4 can evaluate.

Floor 0. Source: istiod's ``pilot/pkg/serviceregistry/ambient/authorization.go``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from ambient.errors import ConfigError
from ambient.model.address import parse_port
from ambient.model.network import canonical_network
from ambient.model.objects import FieldError, Path
from ambient.model.policy import ANYTHING, Clause, Match, Rule, StringMatch

T = TypeVar("T")

_HTTP_SOURCE = ["remoteIpBlocks", "notRemoteIpBlocks", "requestPrincipals", "notRequestPrincipals"]
_HTTP_OPERATION = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"]
# Istio's security reference, "Authorization Policy Conditions": those that need HTTP or a token.
_HTTP_KEY = re.compile(
    r"request\.headers\[.+\]|request\.auth\.(principal|audiences|presenter|claims\[.+\])|remote\.ip"
    r"|connection\.sni|experimental\.envoy\.filters\..+"
)


def convert_rule(rule: Mapping[str, Any], path: Path) -> tuple[Rule, bool]:
    """One clause for "to", one for "from", one for each "when"; and whether HTTP was asked for."""
    clauses: list[Clause] = []
    http = False
    for part, inner, convert_one, unseen in (
        ("to", "operation", _operation, _HTTP_OPERATION),
        ("from", "source", _source, _HTTP_SOURCE),
    ):
        bodies: Sequence[Mapping[str, Any]] = rule.get(part) or ()
        for index, each in enumerate(bodies):
            if not any(each[inner].values()):
                raise FieldError((*path, part, index, inner), "sets no condition")
            http = http or any(each[inner].get(name) for name in unseen)
        if bodies:
            clauses.append(
                tuple(
                    convert_one(each[inner], (*path, part, index, inner)) for index, each in enumerate(bodies)
                )
            )
    for index, each in enumerate(rule.get("when") or ()):
        condition = _when(each, (*path, "when", index))
        http = http or condition.is_empty()
        clauses.append((condition,))
    return tuple(clauses) or ANYTHING, http


def _operation(body: Mapping[str, Any], path: Path) -> Match:
    return Match(
        destination_ports=tuple(int(port) for port in body.get("ports") or ()),
        not_destination_ports=tuple(int(port) for port in body.get("notPorts") or ()),
    )


def _source(body: Mapping[str, Any], path: Path) -> Match:
    return Match(
        principals=_texts(body, "principals", path),
        not_principals=_texts(body, "notPrincipals", path),
        namespaces=_texts(body, "namespaces", path),
        not_namespaces=_texts(body, "notNamespaces", path),
        service_accounts=_accounts(body, "serviceAccounts", path),
        not_service_accounts=_accounts(body, "notServiceAccounts", path),
        source_ips=_blocks(body, "ipBlocks", path),
        not_source_ips=_blocks(body, "notIpBlocks", path),
    )


def _when(body: Mapping[str, Any], path: Path) -> Match:
    """An empty match for a key that layer 4 cannot see."""
    if not body.get("values") and not body.get("notValues"):
        raise FieldError(path, "sets neither values nor notValues")
    match body["key"]:
        case "source.ip":
            return Match(
                source_ips=_blocks(body, "values", path), not_source_ips=_blocks(body, "notValues", path)
            )
        case "source.namespace":
            return Match(
                namespaces=_texts(body, "values", path), not_namespaces=_texts(body, "notValues", path)
            )
        case "source.principal":
            return Match(
                principals=_texts(body, "values", path), not_principals=_texts(body, "notValues", path)
            )
        case "source.serviceAccount":
            return Match(
                service_accounts=_accounts(body, "values", path),
                not_service_accounts=_accounts(body, "notValues", path),
            )
        case "destination.ip":
            return Match(
                destination_ips=_blocks(body, "values", path),
                not_destination_ips=_blocks(body, "notValues", path),
            )
        case "destination.port":
            return Match(
                destination_ports=_ports(body, "values", path),
                not_destination_ports=_ports(body, "notValues", path),
            )
        case key if _HTTP_KEY.fullmatch(key):
            return Match()
        case key:
            raise FieldError((*path, "key"), f"unknown attribute {key!r}")


def _each(body: Mapping[str, Any], name: str, path: Path, read: Callable[[str], T]) -> tuple[T, ...]:
    values = []
    for index, text in enumerate(body.get(name) or ()):
        try:
            values.append(read(text))
        except ConfigError as exc:
            raise FieldError((*path, name, index), str(exc)) from exc
    return tuple(values)


def _texts(body: Mapping[str, Any], name: str, path: Path) -> tuple[StringMatch, ...]:
    # With the scheme a principal would never match, and a DENY would be no guard.
    return _each(body, name, path, lambda text: StringMatch.parse(text.removeprefix("spiffe://")))


def _blocks(body: Mapping[str, Any], name: str, path: Path) -> tuple[str, ...]:
    return _each(body, name, path, canonical_network)


def _ports(body: Mapping[str, Any], name: str, path: Path) -> tuple[int, ...]:
    return _each(body, name, path, parse_port)


def _accounts(body: Mapping[str, Any], name: str, path: Path) -> tuple[str, ...]:
    return _each(body, name, path, _account)


def _account(text: str) -> str:
    namespace, slash, account = text.partition("/")
    if not (namespace and slash and account) or "*" in text:
        raise ConfigError(f"{text!r} is not <namespace>/<service account>")
    return text
