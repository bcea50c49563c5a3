"""Laws of the store: all or nothing, and applying twice is applying once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ambient.control.store_plan import Store, key_of
from ambient.errors import ConfigError
from ambient.model.objects import Object

spaces = st.sampled_from(["default", "shop", "bank"])
labels = st.dictionaries(st.sampled_from(["a", "b"]), st.sampled_from(["1", "2"]), max_size=2)


@st.composite
def objects(draw: st.DrawFn) -> Object:
    kind = draw(st.sampled_from(["Namespace", "ServiceAccount", "Service"]))
    namespace = "" if kind == "Namespace" else draw(spaces)
    name = draw(spaces) if kind == "Namespace" else draw(st.sampled_from("xyz"))
    own = draw(labels)
    body = {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": own},
    }
    return Object(
        kind=kind, api_version="v1", namespace=namespace, name=name, labels=own, annotations={}, body=body
    )


files = st.lists(objects(), max_size=6, unique_by=key_of)


def refuse(_: Store) -> None:
    raise ConfigError("no")


@given(st.lists(files, max_size=4), files)
def test_what_is_refused_leaves_no_trace(history: list[list[Object]], last: list[Object]) -> None:
    """A store is a value: the one before is still there, unchanged."""
    store = Store.fresh(0)
    for file in history:
        store, _ = store.apply(file, 1.0)
    before = dict(store.entries)

    try:
        store.apply(last, 2.0, refuse)
        raise AssertionError("must refuse")
    except ConfigError:
        pass

    assert store.entries == before


@given(files, files)
def test_applying_twice_changes_nothing_the_second_time(first: list[Object], second: list[Object]) -> None:
    """Scripts repeat themselves."""
    store, _ = Store.fresh(0).apply(first, 1.0)
    once, _ = store.apply(second, 2.0)

    twice, outcomes = once.apply(second, 3.0)

    assert {each.result for each in outcomes} <= {"unchanged"}
    assert twice.entries == once.entries


@given(files, labels, labels)
def test_written_labels_stay_through_the_same_file(
    file: list[Object], written: dict[str, str], more: dict[str, str]
) -> None:
    """Enrollment survives a second apply; a label that the file names is the file's again."""
    store, _ = Store.fresh(0).apply(file, 1.0)
    for obj in file:
        store = store.label(key_of(obj), written)
        store = store.label(key_of(obj), more)

    store, _ = store.apply(file, 2.0)

    for obj in file:
        assert store.entries[key_of(obj)].object.labels == {**written, **more, **obj.labels}


@given(files)
def test_everything_that_was_made_can_be_deleted(file: list[Object]) -> None:
    """And nothing else goes with it, unless its namespace does."""
    store, _ = Store.fresh(0).apply(file, 1.0)
    doomed = [key_of(each) for each in file if key_of(each) not in Store.fresh(0).entries]

    after, outcomes = store.delete(doomed)

    assert len(outcomes) == len(doomed)
    assert not set(doomed) & set(after.entries)
    assert set(Store.fresh(0).entries) <= set(after.entries)
