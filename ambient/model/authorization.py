"""AuthorizationPolicy and PeerAuthentication objects turned into policies that layer 4 can enforce.

Floor 0. Source: istiod's ``pilot/pkg/serviceregistry/ambient/authorization.go``. What layer 4 cannot
see (hosts, methods, paths, request headers, tokens) fails safe: an ALLOW rule that asks for it is
dropped, a DENY rule loses only that condition, and one that has nothing else left never matches.
What could not be enforced at all (CUSTOM, AUDIT, targetRefs) is refused, not ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ambient.model.authorization_rules import convert_rule
from ambient.model.objects import FieldError, Object, Path, match_labels, selects_labels
from ambient.model.peer_authentication import ROOT_NAMESPACE, Strictness, strictness
from ambient.model.policy import Action, Policy, Rule, Scope


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
            bindings.append(Binding(policy.key, obj.namespace, match_labels(obj)))
    ranked, made = strictness(peers, root_namespace)
    bindings.sort(key=lambda each: each.key)
    return Security((*policies, *made), tuple(warnings), tuple(bindings), ranked)


def check_security(obj: Object) -> None:
    """Check that *obj* can be converted.

    Raises:
        FieldError: it cannot.
    """
    if obj.kind == "AuthorizationPolicy":
        _authorization(obj, ROOT_NAMESPACE)
    elif obj.spec.get("portLevelMtls") and not match_labels(obj):
        raise FieldError(("spec", "portLevelMtls"), "needs a selector: ports belong to workloads")


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
        clauses, http_only = convert_rule(rule, path)
        if http_only and action == "ALLOW":
            lost.append(f"rule {index} asks for HTTP attributes, which ztunnel cannot see: it allows nothing")
            continue
        if http_only and any(clause and all(m.is_empty() for m in clause) for clause in clauses):
            lost.append(f"rule {index} asks for HTTP attributes, which ztunnel cannot see: it denies nothing")
        elif http_only:
            lost.append(f"rule {index} denies whatever its HTTP attributes: ztunnel cannot see them")
        rules.append(clauses)
    return Policy(
        key=f"{obj.namespace}/{obj.name}",
        namespace=obj.namespace,
        action=Action[action],
        scope=_scope(obj, root_namespace),
        rules=tuple(rules),
    ), lost


def _scope(obj: Object, root_namespace: str) -> Scope:
    if match_labels(obj):
        return Scope.WORKLOAD
    return Scope.GLOBAL if obj.namespace == root_namespace else Scope.NAMESPACE
