"""YAML as a tree: types, lines, and the bounds that hostile text meets."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.errors import ConfigError
from ambient.model import tree
from ambient.model.tree import Tree, load_trees


def load(text: str) -> list[Any]:
    return [each.plain() for each in load_trees("f.yaml", text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *[("no", "no"), ("on", "on"), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"), ("012", "012")],
        *[("0x10", "0x10"), (".inf", ".inf"), (".nan", ".nan"), ("1_000", "1_000"), ("00.5", "00.5")],
        *[("true", True), ("False", False), ("7", 7), ("-3", -3), ("+4", 4), ("1.5", 1.5), ("1e3", 1000.0)],
        *[
            ("'7'", "7"),
            ('"true"', "true"),
            ("!!str 7", "7"),
            ("! 7", "7"),
            ("!!int 7", 7),
            ("!!bool true", True),
        ],
        *[("!!float 1.5", 1.5), ("!!seq [1]", [1]), ("!!map {b: 1}", {"b": 1}), ("|\n  x\n", "x\n")],
    ],
)
def test_a_scalar_has_one_reading(text: str, expected: Any) -> None:
    """Norway is no boolean, and a time of day no number."""
    (found,) = load(f"a: {text}")

    assert found == {"a": expected}
    assert type(found["a"]) is type(expected)


@pytest.mark.parametrize("text", ["a: null", "a: ~", "a:", "a: !!null"])
def test_a_null_is_not_set(text: str) -> None:
    """As in Kubernetes, where creationTimestamp: null is everywhere."""
    assert load(text) == [{}]


def test_documents_are_read_one_by_one_and_empty_ones_passed_over() -> None:
    """Files often begin or end with a separator; Windows adds a mark and carriage returns."""
    assert load("\ufeff---\r\na: 1\r\n---\r\n# nothing\r\n---\r\n- b\r\n---\r\n") == [{"a": 1}, ["b"]]


def test_aliases_and_merge_keys_are_followed() -> None:
    """Hand-written manifests share parts; keys written out win, then the earlier source."""
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 9}\n"
    text += "d: &s text\ne: [*s, *s]\nf: {<<: *b}\n"

    assert load(text) == [
        {
            "a": {"x": 1, "y": 2},
            "b": {"y": 3, "z": 4},
            "c": {"x": 9, "y": 2, "z": 4},
            "d": "text",
            "e": ["text", "text"],
            "f": {"y": 3, "z": 4},
        }
    ]


BOMB = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcde", "bcdef", strict=True)
)
DEEP_BY_ALIAS = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 70))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", "f.yaml:3: duplicate key 'a', first on line 1"),
        ("x: &x {}\na:\n  <<: *x\n  <<: *x\n", "f.yaml:4: duplicate key '<<', first on line 3"),
        ("a: [1\nb: 2", "f.yaml:2: not valid YAML: did not find expected ',' or ']'"),
        ("a: b: c", "f.yaml:1: not valid YAML: mapping values are not allowed in this context"),
        ("ok: 1\n\tq: 1", "f.yaml:2: not valid YAML: found a tab character that violates indentation"),
        ("a: 'x", "f.yaml:1: not valid YAML: found unexpected end of stream"),
        ("a: 1\nb: \x00", "f.yaml:2: the character '\\x00' cannot be in a manifest"),
        ("a: \x1b[31m", "f.yaml:1: the character '\\x1b' cannot be in a manifest"),
        (
            "a: !!python/object:os.system x",
            "f.yaml:1: tag 'tag:yaml.org,2002:python/object:os.system' is not allowed",
        ),
        ("a: !!python/tuple [1]", "f.yaml:1: tag 'tag:yaml.org,2002:python/tuple' is not allowed"),
        ("a: !!int x", "f.yaml:1: 'x' is not of the type that its tag says"),
        ("? [a]\n: b", "f.yaml:1: a key must be text, not a list or mapping"),
        ("a: &a k\n*a : b", "f.yaml:2: a key must be text, not an alias"),
        ("a: *z", "f.yaml:1: alias of an unknown anchor 'z'"),
        ("a: &z 1\n---\nb: *z", "f.yaml:3: alias of an unknown anchor 'z'"),
        ("a: &a [*a]", "f.yaml:1: alias 'a' inside the value that it names"),
        ("a:\n  <<: 5\n", "f.yaml:2: '<<' needs a mapping or a list of mappings"),
        ("a: " + "9" * 5000, "f.yaml:1: number over 19 digits"),
        ("a: 1e999", "f.yaml:1: number out of range: '1e999'"),
        ("[" * 20000, "f.yaml:1: nested deeper than 64 levels"),
        (DEEP_BY_ALIAS, "f.yaml:63: nested deeper than 64 levels"),
        (BOMB, "f.yaml:5: aliases repeat over 10000 values (an alias bomb?)"),
    ],
    ids=lambda value: None,
)
def test_bad_text_is_refused_with_its_line(text: str, message: str) -> None:
    """One line that says where and why, for every way to break a file."""
    with pytest.raises(ConfigError) as caught:
        load(text)

    assert str(caught.value) == message


def test_size_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong file name may name anything."""
    monkeypatch.setattr(tree, "MAX_TEXT_CHARS", 10)
    with pytest.raises(ConfigError, match=r"f\.yaml:1: over 10 characters"):
        load("a: 12345678")

    monkeypatch.setattr(tree, "MAX_VALUES", 3)
    with pytest.raises(ConfigError, match=r"f\.yaml:1: over 3 values"):
        load("[1, 2, 3]")


def test_plain_data_becomes_a_tree_without_lines() -> None:
    """What comes over a wire is checked by the same rules as a file."""
    made = Tree.of({"a": [1, {"b": None}]})

    assert made.plain() == {"a": [1, {}]}
    assert made.line_of(("a", 1, "b")) == 0


def test_plain_data_has_a_depth() -> None:
    """The wire has a frame limit, not a depth limit."""
    deep: Any = 1
    for _ in range(70):
        deep = [deep]

    with pytest.raises(ConfigError, match="nested deeper than 64 levels"):
        Tree.of(deep)


def test_a_path_leads_to_its_line_or_as_near_as_it_gets() -> None:
    """An error about a missing field points at the object that lacks it."""
    (root,) = load_trees("f.yaml", "a:\n  b:\n  - c: 1\n    d: 2\n")

    assert root.line_of(("a", "b", 0, "d")) == 4
    assert root.line_of(("a", "b", 0, "x")) == 3
    assert root.line_of(("a", "b", 7)) == 2
    assert root.line_of(("a", "b", 0, "c", "x")) == 3
    assert root.line_of(()) == 1
