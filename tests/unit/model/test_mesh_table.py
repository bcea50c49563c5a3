"""A table that takes in a change: by the old until the moment, by the new after it."""

from __future__ import annotations

import pytest

from ambient.model import mesh_table
from ambient.model.mesh_table import Index, Table


def through(steps: object) -> int:
    """How many steps there were."""
    return len(list(steps))  # type: ignore[call-overload]


@pytest.mark.parametrize("bound", [0, 1_000])
def test_nothing_is_seen_before_the_moment(bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put in place or merged into a copy: nobody can tell."""
    monkeypatch.setattr(mesh_table, "IN_PLACE_ENTRIES", bound)
    table = Table[int]()
    table.begin(afresh=True)
    table.put("a", 1)
    table.put("b", 2)
    through(table.merging())
    assert table.now == {}
    table.commit()
    through(table.clearing())
    assert table.now == {"a": 1, "b": 2}

    table.begin(afresh=False)
    table.put("a", None)
    table.put("c", 3)
    assert (table.coming("a"), table.coming("b"), table.coming("c")) == (None, 2, 3)
    through(table.merging())
    assert table.now == {"a": 1, "b": 2}
    table.commit()
    through(table.clearing())
    assert table.now == {"b": 2, "c": 3}


def test_a_large_change_has_many_steps_and_a_small_one_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a pause for whoever shares the thread; what was replaced is let go in steps, too."""
    monkeypatch.setattr(mesh_table, "STEP_ENTRIES", 10)
    monkeypatch.setattr(mesh_table, "IN_PLACE_ENTRIES", 10)
    table = Table[int]()
    table.begin(afresh=True)
    for number in range(100):
        table.put(str(number), number)
    assert through(table.merging()) == 10
    table.commit()
    through(table.clearing())

    table.begin(afresh=False)
    table.put("0", -1)
    assert through(table.merging()) == 0
    table.commit()
    assert through(table.clearing()) == 0
    assert table.now["0"] == -1

    table.begin(afresh=False)
    for number in range(50):
        table.put(str(number), None)
    assert through(table.merging()) == 10 + 5
    table.commit()
    assert len(table.now) == 50
    assert through(table.clearing()) >= 10


def test_a_change_that_was_given_up_leaves_no_trace() -> None:
    """The daemon was told to end, say."""
    table = Table[int]()
    table.begin(afresh=True)
    table.put("a", 1)
    table.begin(afresh=False)
    table.put("b", 2)
    through(table.merging())
    table.commit()

    assert table.now == {"b": 2}


def test_an_index_keeps_what_lookups_hold() -> None:
    """A set that somebody reads is never changed; a name without keys goes."""
    index = Index()
    index.begin(afresh=True)
    index.add("ip", "one")
    through(index.merging())
    index.commit()
    held = index.now["ip"]

    index.begin(afresh=False)
    index.add("ip", "two")
    index.discard("ip", "one")
    index.discard("nobody", "one")
    through(index.merging())
    assert index.now["ip"] == {"one"}
    index.commit()
    assert (held, index.now["ip"]) == ({"one"}, {"two"})

    index.begin(afresh=False)
    index.discard("ip", "two")
    assert index.coming("ip") is None
    index.add("ip", "three")
    index.discard("ip", "three")
    index.commit()
    assert index.now == {}


@pytest.mark.parametrize("afresh", [True, False])
def test_answers_about_what_is_touched_are_forgotten(afresh: bool) -> None:
    """And, unless everything is new, no others."""
    for answers in ({"a": 1, "b": 2}, {"a": 1, "b": 2, "c": 3, "d": 4}):
        table = Table[int]()
        table.begin(afresh=afresh)
        table.put("a", 1)
        table.put("x", 1)
        left = {} if afresh else {key: value for key, value in answers.items() if key != "a"}
        table.forget_touched(answers)
        assert answers == left
