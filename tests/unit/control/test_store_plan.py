"""Objects: applied whole or not at all, with kubectl's words."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.control.store_plan import Store
from ambient.errors import ConfigError
from ambient.model.manifest import parse_object
from ambient.model.objects import Object


def obj(kind: str, name: str, namespace: str = "shop", **extra: Any) -> Object:
    metadata = {"name": name, **({} if kind == "Namespace" else {"namespace": namespace})}
    version = {"Deployment": "apps/v1"}.get(kind, "v1")
    metadata |= extra.pop("metadata", {})
    return parse_object({"apiVersion": version, "kind": kind, "metadata": metadata, **extra})


def results(outcomes: Any) -> list[str]:
    return [each.result for each in outcomes]


def test_created_then_unchanged_then_configured() -> None:
    """kubectl's three words."""
    account = obj("ServiceAccount", "web")
    store, first = Store.fresh(0).apply([obj("Namespace", "shop"), account], 1.0)
    store, second = store.apply([account], 2.0)
    changed = obj("ServiceAccount", "web", metadata={"labels": {"a": "b"}})
    store, third = store.apply([changed], 3.0)

    assert (results(first), results(second), results(third)) == (
        ["created", "created"],
        ["unchanged"],
        ["configured"],
    )
    assert store.entries["ServiceAccount", "shop", "web"].created == 1.0


def test_what_an_api_server_adds_is_no_change() -> None:
    """A dump of what was applied can be applied again."""
    store, _ = Store.fresh(0).apply([obj("Namespace", "shop")], 1.0)
    dumped = obj(
        "Namespace", "shop", metadata={"resourceVersion": "7", "uid": "x"}, status={"phase": "Active"}
    )

    assert results(store.apply([dumped], 2.0)[1]) == ["unchanged"]


def test_a_namespace_that_nobody_wrote_is_made() -> None:
    """`kubectl get all -n shop -o yaml` does not contain it."""
    store, outcomes = Store.fresh(0).apply([obj("ServiceAccount", "web")], 1.0)

    assert [(each.kind, each.name) for each in outcomes] == [("Namespace", "shop"), ("ServiceAccount", "web")]
    assert store.get("Namespace", "", "shop") is not None


def test_nothing_is_applied_if_the_check_refuses() -> None:
    """Whole file or nothing."""
    store = Store.fresh(0)

    def refuse(_: Store) -> None:
        raise ConfigError("x.yaml:3: no")

    with pytest.raises(ConfigError, match=r"x\.yaml:3"):
        store.apply([obj("Namespace", "shop")], 1.0, refuse)

    assert store.get("Namespace", "", "shop") is None


def test_a_written_label_survives_the_file_that_does_not_name_it() -> None:
    """kubectl's three-way merge: enrolling and then applying the same file must not un-enroll."""
    file = obj("Namespace", "shop", metadata={"labels": {"team": "a"}})
    key = ("Namespace", "", "shop")
    store, _ = Store.fresh(0).apply([file], 1.0)
    store = store.label(key, {"istio.io/dataplane-mode": "ambient"})

    store, outcomes = store.apply([file], 2.0)

    assert results(outcomes) == ["unchanged"]
    assert store.labels_of_namespace("shop") == {"team": "a", "istio.io/dataplane-mode": "ambient"}
    shown = store.entries[key].object.body["metadata"]["labels"]
    assert shown == {"team": "a", "istio.io/dataplane-mode": "ambient"}


def test_a_file_that_changes_its_mind_wins_over_a_written_label() -> None:
    """The last word counts."""
    key = ("Namespace", "", "shop")
    store, _ = Store.fresh(0).apply([obj("Namespace", "shop")], 1.0)
    store = store.label(key, {"mode": "a"})

    store, outcomes = store.apply([obj("Namespace", "shop", metadata={"labels": {"mode": "b"}})], 2.0)

    assert store.labels_of_namespace("shop") == {"mode": "b"}
    assert results(outcomes) == ["configured"]


def test_a_label_that_the_file_names_comes_back_with_it() -> None:
    """kubectl sets what the file says, whatever was written in between."""
    key = ("Namespace", "", "shop")
    file = obj("Namespace", "shop", metadata={"labels": {"mode": "a"}})
    store, _ = Store.fresh(0).apply([file], 1.0)

    store, outcomes = store.label(key, {"mode": None}).apply([file], 2.0)

    assert store.labels_of_namespace("shop") == {"mode": "a"}
    assert results(outcomes) == ["configured"]


def test_a_label_of_the_file_can_be_taken_away_and_given_back() -> None:
    """Un-enrolling what a manifest enrolled."""
    key = ("Namespace", "", "shop")
    store, _ = Store.fresh(0).apply([obj("Namespace", "shop", metadata={"labels": {"mode": "a"}})], 1.0)

    without = store.label(key, {"mode": None})
    again = without.label(key, {"mode": "a"})

    assert without.labels_of_namespace("shop") == {}
    assert again.labels_of_namespace("shop") == {"mode": "a"}
    assert not again.entries[key].labels


def test_a_namespace_takes_its_objects_along() -> None:
    """As in Kubernetes."""
    store, _ = Store.fresh(0).apply([obj("ServiceAccount", "web"), obj("ServiceAccount", "x", "other")], 1.0)

    store, outcomes = store.delete([("Namespace", "", "shop")])

    assert results(outcomes) == ["deleted"]
    assert [each.name for each in store.of_kind("ServiceAccount")] == ["x"]


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (("Service", "shop", "nobody"), "service 'nobody' does not exist in namespace 'shop'"),
        (("Namespace", "", "default"), "cannot be deleted"),
    ],
    ids=["unknown", "default"],
)
def test_what_cannot_be_deleted(key: tuple[str, str, str], reason: str) -> None:
    """And then nothing is."""
    store, _ = Store.fresh(0).apply([obj("ServiceAccount", "web")], 1.0)

    with pytest.raises(ConfigError, match=reason):
        store.delete([("ServiceAccount", "shop", "web"), key])


def test_a_label_needs_an_object() -> None:
    """A name that is not there is a mistake."""
    with pytest.raises(ConfigError, match="does not exist"):
        Store.fresh(0).label(("Namespace", "", "shop"), {})
