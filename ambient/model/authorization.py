"""AuthorizationPolicy and PeerAuthentication objects turned into policies that layer 4 can enforce.

Floor 0. Source: istiod's ``pilot/pkg/serviceregistry/ambient/authorization.go``. What layer 4 cannot
see (hosts, methods, paths, request headers, tokens) fails safe: an ALLOW rule that asks for it is
dropped, a DENY rule loses only that condition, and one that has nothing else left never matches.
What could not be enforced at all (CUSTOM, AUDIT, targetRefs) is refused, not ignored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ambient.errors import ConfigError
from ambient.model.address import parse_port
from ambient.model.objects import FieldError, Object, Path, selects_labels
from ambient.model.policy import (
    ANYTHING,
    Action,
    Clause,
    Match,
    MatchKind,
    Policy,
    Rule,
    Scope,
    StringMatch,
    canonical_network,
)

T = TypeVar("T")

# Istio's default for the namespace whose policies hold for the whole mesh.
ROOT_NAMESPACE = "istio-system"
STATIC_STRICT = f"{ROOT_NAMESPACE}/istio_converted_static_strict"

_NO_IDENTITY = (StringMatch(MatchKind.PRESENCE),)
_STRICT_POLICY = Policy(
    key=STATIC_STRICT,
    namespace=ROOT_NAMESPACE,
    action=Action.DENY,
    scope=Scope.WORKLOAD,
    rules=(((Match(not_principals=_NO_IDENTITY),),),),
)

# Istio's security reference, "Authorization Policy Conditions": those that need HTTP or a token.
_HTTP_KEY = re.compile(
    r"request\.headers\[.+\]|request\.auth\.(principal|audiences|presenter|claims\[.+\])|remote\.ip"
    r"|connection\.sni|experimental\.envoy\.filters\..+"
)

_HTTP_SOURCE = ["remoteIpBlocks", "notRemoteIpBlocks", "requestPrincipals", "notRequestPrincipals"]
_HTTP_OPERATION = ["hosts", "notHosts", "methods", "notMethods", "paths", "notPaths"]


@dataclass(frozen=True, slots=True)
class Binding:
    """A policy that is bound to workloads by their labels."""

    key: str
    namespace: str
    match_labels: tuple[tuple[str, str], ...]

    def selects(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether it binds a pod with these labels."""
        return namespace == self.namespace and selects_labels(dict(self.match_labels), labels)


@dataclass(frozen=True, slots=True)
class Strictness:
    """One PeerAuthentication: what it says about a workload that it selects.

    Attributes:
        namespace: "" for the whole mesh.
        match_labels: Empty for the whole namespace.
        policy: Key of the policy that it means for its workloads; "" if plaintext is accepted.
    """

    namespace: str
    match_labels: tuple[tuple[str, str], ...]
    policy: str

    def covers(self, namespace: str, labels: Mapping[str, str]) -> bool:
        """Whether a pod with these labels is under it."""
        return self.namespace in ("", namespace) and selects_labels(dict(self.match_labels), labels)


@dataclass(frozen=True, slots=True)
class Security:
    """What the security objects of a mesh mean.

    Attributes:
        policies: To be distributed.
        warnings: Rules that lose a part at layer 4, one sentence each.
        bindings: AuthorizationPolicies with a selector.
        strictness: PeerAuthentications, the most specific first; the first that covers a pod counts.
    """

    policies: tuple[Policy, ...] = ()
    warnings: tuple[str, ...] = ()
    bindings: tuple[Binding, ...] = ()
    strictness: tuple[Strictness, ...] = ()

    def bound_to(self, namespace: str, labels: Mapping[str, str]) -> tuple[str, ...]:
        """The keys for ``Workload.authorization_policies`` of a pod (not of a waypoint)."""
        keys = [each.key for each in self.bindings if each.selects(namespace, labels)]
        covering = (each.policy for each in self.strictness if each.covers(namespace, labels))
        strict = next(covering, "")
        return (*keys, strict) if strict else tuple(keys)


def convert(objects: Iterable[Object], root_namespace: str = ROOT_NAMESPACE) -> Security:
    """Convert every AuthorizationPolicy and PeerAuthentication of *objects*; others are passed over.

    Raises:
        ConfigError: ``file:line: reason``: what cannot be enforced is refused.
    """
    policies: list[Policy] = []
    warnings: list[str] = []
    bindings: list[Binding] = []
    peers: list[Object] = []
    for obj in objects:
        if obj.kind == "PeerAuthentication":
            peers.append(obj)
        if obj.kind != "AuthorizationPolicy":
            continue
        try:
            policy, lost = _authorization(obj, root_namespace)
        except FieldError as exc:
            raise obj.error(str(exc)) from exc
        policies.append(policy)
        warnings += [f"{obj.origin or obj}: {obj.kind} {policy.key}: {each}" for each in lost]
        if policy.scope is Scope.WORKLOAD:
            bindings.append(Binding(policy.key, obj.namespace, _selector(obj)))
    strictness, made = _strictness(peers, root_namespace)
    bindings.sort(key=lambda each: each.key)
    return Security((*policies, *made), tuple(warnings), tuple(bindings), strictness)


def check_security(obj: Object) -> None:
    """Check that *obj* can be converted.

    Raises:
        FieldError: it cannot.
    """
    if obj.kind == "AuthorizationPolicy":
        _authorization(obj, ROOT_NAMESPACE)
    elif obj.spec.get("portLevelMtls") and not _selector(obj):
        raise FieldError(("spec", "portLevelMtls"), "needs a selector: ports belong to workloads")


def _selector(obj: Object) -> tuple[tuple[str, str], ...]:
    selector = obj.spec.get("selector") or {}
    return tuple(sorted((selector.get("matchLabels") or {}).items()))


def _authorization(obj: Object, root_namespace: str) -> tuple[Policy, list[str]]:
    for name in ("targetRef", "targetRefs"):
        if obj.spec.get(name):
            raise FieldError(("spec", name), "policies at a waypoint are not supported: use a selector")
    action = obj.spec.get("action", "ALLOW")
    if action not in Action.__members__:
        raise FieldError(("spec", "action"), f"{action} cannot be enforced by ztunnel: use ALLOW or DENY")
    rules: list[Rule] = []
    lost: list[str] = []
    for index, rule in enumerate(obj.spec.get("rules") or ()):
        path: Path = ("spec", "rules", index)
        clauses, http_only = _rule(rule, path)
        if http_only and action == "ALLOW":
            lost.append(f"rule {index} asks for HTTP attributes, which ztunnel cannot see: it allows nothing")
            continue
        if http_only:
            lost.append(f"rule {index} denies without its HTTP attributes, which ztunnel cannot see")
        rules.append(clauses)
    return Policy(
        key=f"{obj.namespace}/{obj.name}",
        namespace=obj.namespace,
        action=Action[action],
        scope=_scope(obj, root_namespace),
        rules=tuple(rules),
    ), lost


def _scope(obj: Object, root_namespace: str) -> Scope:
    if _selector(obj):
        return Scope.WORKLOAD
    return Scope.GLOBAL if obj.namespace == root_namespace else Scope.NAMESPACE


def _rule(rule: Mapping[str, Any], path: Path) -> tuple[Rule, bool]:
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


def _strictness(
    peers: Sequence[Object], root_namespace: str
) -> tuple[tuple[Strictness, ...], tuple[Policy, ...]]:
    """Rank the PeerAuthentications and make the policies that they mean."""
    oldest_first = sorted(peers, key=lambda obj: str(_created(obj)))
    modes: dict[str, str] = {}  # Of whole namespaces; "" is the mesh.
    for obj in oldest_first:
        if not _selector(obj):
            modes.setdefault("" if obj.namespace == root_namespace else obj.namespace, _mode(obj.spec))
    strict = {name: STATIC_STRICT if _inherited(modes, name, "UNSET") == "STRICT" else "" for name in modes}
    ranked: list[Strictness] = []
    policies: dict[str, Policy] = {}
    for obj in oldest_first:
        if not _selector(obj):
            continue
        policy = _selected(obj, _inherited(modes, obj.namespace, _mode(obj.spec)))
        if policy is not None:
            policies[policy.key] = policy
        ranked.append(Strictness(obj.namespace, _selector(obj), policy.key if policy else ""))
    # The mesh, named "", comes last.
    for name in sorted(modes, reverse=True):
        ranked.append(Strictness(name, (), strict[name]))
    if STATIC_STRICT in strict.values():
        policies[STATIC_STRICT] = _STRICT_POLICY
    return tuple(ranked), tuple(policies.values())


def _created(obj: Object) -> str:
    # Without a time, as in files written by hand: after those that have one, in the order given.
    return str(obj.body["metadata"].get("creationTimestamp") or "~")


def _mode(spec: Mapping[str, Any]) -> str:
    return str((spec.get("mtls") or {}).get("mode", "UNSET"))


def _inherited(modes: Mapping[str, str], namespace: str, own: str) -> str:
    for mode in (own, modes.get(namespace, "UNSET"), modes.get("", "UNSET")):
        if mode != "UNSET":
            return mode
    return "PERMISSIVE"


def _selected(obj: Object, mode: str) -> Policy | None:
    """The policy for the workloads of one PeerAuthentication; None if it refuses nothing."""
    levels = {
        int(port): level["mode"] if level.get("mode", "UNSET") != "UNSET" else mode
        for port, level in (obj.spec.get("portLevelMtls") or {}).items()
    }
    strict = tuple(sorted(port for port, level in levels.items() if level == "STRICT"))
    open_ = tuple(sorted(port for port, level in levels.items() if level != "STRICT"))
    rule: Rule
    if mode == "STRICT" and not open_:
        return _STRICT_POLICY
    if mode == "STRICT":
        rule = ((Match(not_principals=_NO_IDENTITY),), (Match(not_destination_ports=open_),))
    elif strict:
        rule = ((Match(not_principals=_NO_IDENTITY, destination_ports=strict),),)
    else:
        return None
    return Policy(
        key=f"{obj.namespace}/converted_peer_authentication_{obj.name}",
        namespace=obj.namespace,
        action=Action.DENY,
        scope=Scope.WORKLOAD,
        rules=(rule,),
    )
