"""Whether Kubernetes NetworkPolicies let HBONE through.

Floor 0. The mesh enforces none of them (a CNI does, where it can): it reads them to say beforehand that
enrolled pods could not be reached, the best known way to break a mesh (Istio's guides warn of it).

Source: Kubernetes 1.34 ``networking.k8s.io/v1``: a pod that some policy selects takes only what one of
those that select it allows; the policies add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ambient.model.objects import Object, selects


def blocks(
    policies: Iterable[Object], namespace: str, labels: Mapping[str, str], port: int, direction: str
) -> str:
    """The name of a policy that keeps every peer from TCP *port*; "" if some peer may pass.

    Args:
        direction: ``"Ingress"`` or ``"Egress"``, seen from the pod with these *labels*.
    """
    mine = [
        each
        for each in policies
        if each.namespace == namespace and _isolates(each, direction) and _selects(each, labels)
    ]
    if any(_allows(rule, port) for each in mine for rule in each.spec.get(direction.lower()) or ()):
        return ""
    return min((each.name for each in mine), default="")


def _isolates(policy: Object, direction: str) -> bool:
    """Kubernetes: without policyTypes always Ingress, and Egress if it has egress rules."""
    types = policy.spec.get("policyTypes")
    if types:
        return direction in types
    return direction == "Ingress" or bool(policy.spec.get("egress"))


def _selects(policy: Object, labels: Mapping[str, str]) -> bool:
    return selects(policy.spec.get("podSelector"), labels)


def _allows(rule: Mapping[str, Any], port: int) -> bool:
    ports = rule.get("ports")
    return not ports or any(_covers(each, port) for each in ports)


def _covers(entry: Mapping[str, Any], port: int) -> bool:
    if entry.get("protocol", "TCP") != "TCP":
        return False
    first = entry.get("port")
    if first is None:
        return True
    # A named port is one of the application's, never the proxy's.
    return isinstance(first, int) and first <= port <= int(entry.get("endPort") or first)
