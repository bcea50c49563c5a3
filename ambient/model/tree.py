"""YAML text as a tree that remembers its lines, built with bounds on everything a file can inflate.

Floor 0. PyYAML only tells the events; the tree is made here, without recursion, so that a hostile file
meets a named limit and never the interpreter's. JSON is read as the YAML that it is.

Plain scalars follow the YAML 1.2 core schema, narrowed: ``no``, ``1:30``, ``2024-01-01``, ``012``,
``.inf`` are text. So a port that has two readings has none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from ambient.errors import ConfigError
from ambient.model.objects import Path

# All picked, not measured: a dump of 5,000 pods has 5 MB and a million values, and is 12 levels deep.
MAX_TEXT_CHARS = 16 * 1024 * 1024
MAX_VALUES = 2_000_000
MAX_DEPTH = 64
# Values that aliases may add to a document by repetition; hand-written files stay far below.
MAX_ALIASED_VALUES = 10_000

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What YAML 1.2 section 5.1 allows in a stream.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)?\.?[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?[1-9][0-9]*\.")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9]")
# What fits the 64 bits that JSON readers and our wire have.
_MAX_INT_CHARS = 19
_TAG = "tag:yaml.org,2002:"
# libyaml 0.2.6, scanner.c.
_TOO_DEEP_FOR_LIBYAML = "exceeded maximum nesting depth"


class Tree:
    """One value: a dict of trees, a list of trees, or a scalar.

    Attributes:
        line: Where it begins, from 1.
        key_lines: For a mapping, where each key stands.
    """

    __slots__ = ("count", "height", "key_lines", "line", "value")

    def __init__(self, value: Any, line: int) -> None:
        self.value = value
        self.line = line
        self.key_lines: dict[str, int] = {}
        self.count = 1
        self.height = 1

    @classmethod
    def of(cls, plain: Any, line: int = 0, depth: int = 0) -> Tree:
        """The tree of plain data, every part on *line*.

        Raises:
            ConfigError: nested deeper than ``MAX_DEPTH``.
        """
        if depth > MAX_DEPTH:
            raise ConfigError(f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(plain, dict):
            made = cls({key: cls.of(value, line, depth + 1) for key, value in plain.items()}, line)
            made.key_lines = dict.fromkeys(plain, line)
            return made
        if isinstance(plain, list | tuple):
            return cls([cls.of(value, line, depth + 1) for value in plain], line)
        return cls(plain, line)

    def plain(self) -> Any:
        """The value without lines; mappings without their nulls, which mean "not set"."""
        if isinstance(self.value, dict):
            return {key: tree.plain() for key, tree in self.value.items() if tree.value is not None}
        if isinstance(self.value, list):
            return [tree.plain() for tree in self.value]
        return self.value

    def line_of(self, path: Path) -> int:
        """Where *path* stands, or the nearest place above it that exists."""
        tree, line = self, self.line
        for part in path:
            if isinstance(tree.value, dict) and part in tree.value:
                line = tree.key_lines[str(part)]
                tree = tree.value[part]
            elif isinstance(tree.value, list) and isinstance(part, int) and part < len(tree.value):
                tree = tree.value[part]
                line = tree.line
            else:
                break
        return line


def load_trees(path: str, text: str) -> Iterator[Tree]:
    """Yield the tree of every document of *text* that is not empty.

    Raises:
        ConfigError: ``path:line: reason``.
    """
    if len(text) > MAX_TEXT_CHARS:
        raise ConfigError(f"{path}:1: over {MAX_TEXT_CHARS} characters")
    text = text.removeprefix("\ufeff")
    if bad := _UNPRINTABLE.search(text):
        line = text.count("\n", 0, bad.start()) + 1
        raise ConfigError(f"{path}:{line}: the character {bad.group()!r} cannot be in a manifest")
    try:
        for tree in _Composer(path).documents(text):
            if tree.value is not None:
                yield tree
    except yaml.MarkedYAMLError as exc:
        raise ConfigError(f"{path}:{_line(exc.problem_mark)}: {_problem(exc)}") from exc


def _problem(exc: yaml.MarkedYAMLError) -> str:
    """What is wrong, in our words where the parser meets a limit of its own before ours.

    It reads ahead for the end of a possible key, so libyaml >= 0.2.6 can count 1,000 levels before we see 64.
    """
    if exc.problem == _TOO_DEEP_FOR_LIBYAML:
        return f"nested deeper than {MAX_DEPTH} levels"
    return f"not valid YAML: {exc.problem}"


def _line(mark: Any) -> int:
    return int(mark.line) + 1


class _Open:
    """A mapping or sequence whose end has not come yet."""

    __slots__ = ("anchor", "key", "merged", "tree")

    def __init__(self, tree: Tree, anchor: str | None) -> None:
        self.tree = tree
        self.anchor = anchor
        self.key: str | None = None
        self.merged: list[Tree] = []


class _Composer:
    def __init__(self, path: str) -> None:
        self._path = path
        self._anchors: dict[str, Tree | None] = {}
        self._open: list[_Open] = []
        self._values = 0
        self._aliased = 0
        self._root: Tree | None = None

    def documents(self, text: str) -> Iterator[Tree]:
        for event in yaml.parse(text, Loader=_LOADER):
            line = _line(event.start_mark)
            match event:
                case yaml.DocumentStartEvent():
                    self._anchors, self._root, self._aliased = {}, None, 0
                case yaml.DocumentEndEvent():
                    assert self._root is not None
                    yield self._root
                case yaml.ScalarEvent():
                    self._scalar(event, line)
                case yaml.AliasEvent():
                    self._alias(str(event.anchor), line)
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    self._begin(event, line)
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self._end()

    def _fail(self, line: int, reason: str) -> ConfigError:
        return ConfigError(f"{self._path}:{line}: {reason}")

    def _count(self, line: int) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._fail(line, f"over {MAX_VALUES} values")

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        self._count(line)
        if self._wants_key():
            self._key(event, line)
            return
        tree = Tree(self._resolve(event, line), line)
        if event.anchor:
            self._anchors[event.anchor] = tree
        self._attach(tree)

    def _wants_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1].tree.value, dict) and self._open[-1].key is None

    def _key(self, event: yaml.ScalarEvent, line: int) -> None:
        top = self._open[-1]
        key = str(event.value)
        if key in top.tree.value or (key == "<<" and top.merged):
            first = top.tree.key_lines[key]
            raise self._fail(line, f"duplicate key {key!r}, first on line {first}")
        top.tree.key_lines[key] = line
        top.key = key

    def _alias(self, anchor: str, line: int) -> None:
        if self._wants_key():
            raise self._fail(line, "a key must be text, not an alias")
        if anchor not in self._anchors:
            raise self._fail(line, f"alias of an unknown anchor {anchor!r}")
        tree = self._anchors[anchor]
        if tree is None:
            raise self._fail(line, f"alias {anchor!r} inside the value that it names")
        self._aliased += tree.count
        if self._aliased > MAX_ALIASED_VALUES:
            raise self._fail(line, f"aliases repeat over {MAX_ALIASED_VALUES} values (an alias bomb?)")
        if len(self._open) + tree.height > MAX_DEPTH:
            raise self._fail(line, f"nested deeper than {MAX_DEPTH} levels")
        self._attach(tree)

    def _begin(self, event: yaml.CollectionStartEvent, line: int) -> None:
        self._count(line)
        if self._wants_key():
            raise self._fail(line, "a key must be text, not a list or mapping")
        mapping = isinstance(event, yaml.MappingStartEvent)
        if event.tag not in (None, "!", _TAG + ("map" if mapping else "seq")):
            raise self._fail(line, f"tag {event.tag!r} is not allowed")
        if len(self._open) >= MAX_DEPTH:
            raise self._fail(line, f"nested deeper than {MAX_DEPTH} levels")
        if event.anchor:
            self._anchors[event.anchor] = None
        self._open.append(_Open(Tree({} if mapping else [], line), event.anchor))

    def _end(self) -> None:
        closed = self._open.pop()
        for source in closed.merged:
            self._merge(closed.tree, source)
        if closed.anchor:
            self._anchors[closed.anchor] = closed.tree
        self._attach(closed.tree)

    def _attach(self, tree: Tree) -> None:
        if not self._open:
            self._root = tree
            return
        top = self._open[-1]
        parent = top.tree
        parent.count += tree.count
        parent.height = max(parent.height, tree.height + 1)
        if isinstance(parent.value, list):
            parent.value.append(tree)
            return
        key, top.key = top.key, None
        if key == "<<":
            top.merged.append(tree)
        else:
            parent.value[key] = tree

    def _merge(self, into: Tree, source: Tree) -> None:
        """Take what ``<<`` names; keys written out win, then earlier sources."""
        for each in source.value if isinstance(source.value, list) else [source]:
            if not isinstance(each.value, dict):
                raise self._fail(into.key_lines["<<"], "'<<' needs a mapping or a list of mappings")
            for key, tree in each.value.items():
                if key not in into.value:
                    into.value[key] = tree
                    into.key_lines[key] = each.key_lines[key]

    def _resolve(self, event: yaml.ScalarEvent, line: int) -> Any:
        text, tag = event.value, event.tag
        if tag in ("!", _TAG + "str"):
            return text
        if tag is None:
            return self._plain(text, line) if event.implicit[0] else text
        value = self._plain(text, line)
        wanted = {_TAG + "int": int, _TAG + "bool": bool, _TAG + "null": type(None), _TAG + "float": float}
        if tag not in wanted:
            raise self._fail(line, f"tag {tag!r} is not allowed")
        if type(value) is not wanted[tag]:
            raise self._fail(line, f"{text!r} is not of the type that its tag says")
        return value

    def _plain(self, text: str, line: int) -> Any:
        if text in _NULLS:
            return None
        if text in _BOOLS:
            return _BOOLS[text]
        if _INT.fullmatch(text):
            if len(text) > _MAX_INT_CHARS:
                raise self._fail(line, f"number over {_MAX_INT_CHARS} digits")
            return int(text)
        if _FLOAT.fullmatch(text) and not _LEADING_ZERO.match(text):
            number = float(text)
            if math.isinf(number):
                raise self._fail(line, f"number out of range: {text!r}")
            return number
        return text
