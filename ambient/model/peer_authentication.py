"""PeerAuthentication objects turned into the DENY policies that refuse plaintext.

Floor 0. Source: istiod's ``pilot/pkg/serviceregistry/ambient/authorization.go``: ztunnel only knows
policies, so STRICT is one that denies whoever has no identity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ambient.model.objects import Object, match_labels, selects_labels
from ambient.model.policy import Action, Match, MatchKind, Policy, Rule, Scope, StringMatch

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


def strictness(
    peers: Sequence[Object], root_namespace: str
) -> tuple[tuple[Strictness, ...], tuple[Policy, ...]]:
    """Rank the PeerAuthentications and make the policies that they mean."""
    oldest_first = sorted(peers, key=lambda obj: str(_created(obj)))
    modes: dict[str, str] = {}  # Of whole namespaces; "" is the mesh.
    for obj in oldest_first:
        if not match_labels(obj):
            modes.setdefault("" if obj.namespace == root_namespace else obj.namespace, _mode(obj.spec))
    strict = {name: STATIC_STRICT if _inherited(modes, name, "UNSET") == "STRICT" else "" for name in modes}
    ranked: list[Strictness] = []
    policies: dict[str, Policy] = {}
    for obj in oldest_first:
        if not match_labels(obj):
            continue
        policy = _selected(obj, _inherited(modes, obj.namespace, _mode(obj.spec)))
        if policy is not None:
            policies[policy.key] = policy
        ranked.append(Strictness(obj.namespace, match_labels(obj), policy.key if policy else ""))
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
