"""NetworkPolicies that would keep HBONE out."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.model.manifest import parse_manifests, parse_object
from ambient.model.network_policy import blocks

LABELS = {"app": "web"}


def policy(spec: dict[str, Any], name: str = "p", namespace: str = "shop") -> Any:
    metadata = {"name": name, "namespace": namespace}
    body = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}
    return parse_object(body)


WEB = {"podSelector": {"matchLabels": LABELS}}
ALL: dict[str, Any] = {"podSelector": {}}


@pytest.mark.parametrize(
    ("spec", "direction", "blocked"),
    [
        (ALL, "Ingress", True),
        (ALL, "Egress", False),
        (ALL | {"policyTypes": ["Egress"]}, "Ingress", False),
        (ALL | {"policyTypes": ["Egress"]}, "Egress", True),
        (ALL | {"ingress": [{}]}, "Ingress", False),
        (ALL | {"ingress": []}, "Ingress", True),
        (WEB | {"ingress": [{"ports": [{"port": 80}]}]}, "Ingress", True),
        (WEB | {"ingress": [{"ports": [{"port": "http"}]}]}, "Ingress", True),
        (WEB | {"ingress": [{"ports": [{"port": 15008}]}]}, "Ingress", False),
        (WEB | {"ingress": [{"ports": [{"port": 15008, "protocol": "UDP"}]}]}, "Ingress", True),
        (WEB | {"ingress": [{"ports": [{"port": 15000, "endPort": 15010}]}]}, "Ingress", False),
        (WEB | {"ingress": [{"ports": [{"protocol": "TCP"}]}]}, "Ingress", False),
        (WEB | {"ingress": [{"from": [{"podSelector": {}}]}]}, "Ingress", False),
        (WEB | {"egress": [{"ports": [{"port": 53}]}]}, "Egress", True),
        ({"podSelector": {"matchLabels": {"app": "db"}}}, "Ingress", False),
        ({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Exists"}]}}, "Ingress", True),
    ],
)
def test_one_policy(spec: dict[str, Any], direction: str, blocked: bool) -> None:
    """As Kubernetes reads it."""
    assert blocks([policy(spec)], "shop", LABELS, 15008, direction) == ("p" if blocked else "")


def test_policies_add_up() -> None:
    """What one of them allows is allowed; those of other namespaces are nobody's business."""
    closed, opened = policy(ALL, "closed"), policy(ALL | {"ingress": [{}]}, "opened")

    assert blocks([closed, policy(ALL, "also")], "shop", LABELS, 15008, "Ingress") == "also"
    assert blocks([closed, opened], "shop", LABELS, 15008, "Ingress") == ""
    assert blocks([policy(ALL, namespace="other")], "shop", LABELS, 15008, "Ingress") == ""


def test_a_manifest_is_told_that_nobody_enforces_it() -> None:
    """Read is not obeyed."""
    head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n"
    text = f"{head}metadata: {{name: p}}\nspec: {{podSelector: {{}}}}\n"
    assert any("not enforced here" in each for each in parse_manifests([("p.yaml", text)]).warnings)
