"""Kinds by every name, and rows that survive objects with nothing in them."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.cli import kinds
from ambient.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "kind"),
    [("po", "Pod"), ("PODS", "Pod"), ("ns", "Namespace"), ("gtw", "Gateway"), ("ap", "AuthorizationPolicy")],
)
def test_aliases(text: str, kind: str) -> None:
    """kubectl's and istioctl's short names."""
    assert kinds.kind_of(text) == kind


@pytest.mark.parametrize(
    ("text", "default", "found"),
    [("pod/x", "", ("Pod", "x")), ("svc/x", "Pod", ("Service", "x")), ("x", "Pod", ("Pod", "x"))],
)
def test_targets(text: str, default: str, found: tuple[str, str]) -> None:
    """KIND/NAME, or a bare name where the kind is clear."""
    assert kinds.parse_target(text, default) == found


@pytest.mark.parametrize("text", ["x", "pod/", "tree/x"])
def test_bad_targets(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ConfigError):
        kinds.parse_target(text)


POD = {"metadata": {"name": "a"}, "status": {"phase": "Running"}}
OWNED = [
    {
        "metadata": {"name": f"web-{n}", "ownerReferences": [{"kind": "Deployment", "name": "web"}]},
        "status": status,
    }
    for n, status in enumerate([{"phase": "Pending"}, {"phase": "Running"}])
]


@pytest.mark.parametrize(
    ("kind", "name", "found"),
    [
        ("Pod", "a", ["a"]),
        ("Pod", "web", []),
        ("Deployment", "web", ["web-1", "web-0"]),
        ("Deployment", "a", []),
    ],
)
def test_pods_of(kind: str, name: str, found: list[str]) -> None:
    """A Deployment stands for its pods, and one that can answer comes first."""
    assert [kinds.name_of(pod) for pod in kinds.pods_of([POD, *OWNED], kind, name)] == found


def test_pods_of_what_has_none() -> None:
    """A namespace is no pod; better said than guessed."""
    with pytest.raises(ConfigError, match="deploy/NAME"):
        kinds.pods_of([POD], "Namespace", "a")


@pytest.mark.parametrize("kind", [*kinds.ALIASES, "Unheard"])
def test_an_object_with_nothing_in_it_still_has_a_row(kind: str) -> None:
    """What is not there yet must not break the list of what is."""
    headers, body = kinds.rows(kind, [{"metadata": {"name": "x"}}], 0.0, wide=True, namespaces=True)

    assert len(headers) == len(body[0])
    assert "x" in body[0]


@pytest.mark.parametrize(
    ("kind", "item", "cells"),
    [
        ("Deployment", {"spec": {"replicas": 3}, "status": {"readyReplicas": 2}}, ("x", "2/3", "<unknown>")),
        ("AuthorizationPolicy", {"spec": {"action": "DENY"}}, ("x", "DENY", "<unknown>")),
        ("Node", {"metadata": {"name": "x", "creationTimestamp": "1970-01-01T00:00:00Z"}}, ("x", "60s")),
    ],
)
def test_rows(kind: str, item: dict[str, Any], cells: tuple[object, ...]) -> None:
    """One kind each."""
    _headers, body = kinds.rows(
        kind, [{"metadata": {"name": "x"}, **item}], 60.0, wide=False, namespaces=False
    )

    assert body == [cells]


@pytest.mark.parametrize(
    ("state", "mode"),
    [
        ({}, "none"),
        ({"mode": None}, "none"),
        ({"mode": "sidecar"}, "sidecar"),
        ({"mode": "ambient", "enrolled": True}, "ambient"),
        ({"mode": "ambient", "enrolled": False}, "ambient (not yet)"),
    ],
)
def test_modes(state: dict[str, Any], mode: str) -> None:
    """Asked for is not the same as done."""
    assert kinds.pod_mode({"status": {"ambient": state}}) == mode


def test_a_selector_without_a_key_is_refused() -> None:
    """An empty selector selects all; a broken one must not."""
    assert kinds.selects("", {"a": "b"})
    assert kinds.selects("a=b, !c", {"a": "b"})
    assert kinds.selects("istio.io/dataplane-mode=ambient,!a", {"istio.io/dataplane-mode": "ambient"})
    for broken in ("=x", "a in", "a in (b,c)", "!", "!!a", "a b=c", "-a"):
        with pytest.raises(ConfigError, match="not a label selector"):
            kinds.selects(broken, {})
