"""Objects, their names, and label selectors."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.model.manifest import parse_object
from ambient.model.objects import FieldError, path_text, selects


def test_an_object_knows_what_it_is_called() -> None:
    """Errors and keys use these."""
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a", "namespace": ""}}
    namespace = parse_object(body)
    account = parse_object({**body, "kind": "ServiceAccount", "metadata": {"name": "b"}}, "f.yaml:3")

    assert str(namespace) == "Namespace a"
    assert str(account) == "ServiceAccount default/b"
    assert account.key == ("", "ServiceAccount", "default", "b")
    assert namespace.spec == {}
    assert str(namespace.error("no")) == "Namespace a: no"
    assert str(account.error("no")) == "f.yaml:3: no"


def test_paths_read_as_people_write_them() -> None:
    """kubectl explain and jsonpath use this form."""
    assert path_text(("spec", "ports", 0, "port")) == "spec.ports[0].port"
    assert str(FieldError((), "no")) == "no"


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (None, True),
        ({}, True),
        ({"matchLabels": {"app": "a"}}, True),
        ({"matchLabels": {"app": "b"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]}, False),
        ({"matchExpressions": [{"key": "no", "operator": "NotIn", "values": ["a"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"app": "a"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}, False),
    ],
)
def test_a_selector_selects_as_in_kubernetes(selector: dict[str, Any] | None, expected: bool) -> None:
    """Both halves must hold."""
    assert selects(selector, {"app": "a"}) is expected
