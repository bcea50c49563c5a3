"""Checks for trees: which fields there are and what may stand in them.

Floor 0. A check takes a tree and its path and raises ``FieldError``, or returns; fields that
Kubernetes knows and the mesh does not use are noted, and what is under them is not looked at.
A null means "not set", as it does to Kubernetes.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from ambient.model.objects import FieldError, Path
from ambient.model.tree import Tree

# Takes the paths of fields that are known and not used, list positions written as "[]".
Unused = set[str]
Check = Callable[[Tree, Path, Unused], None]

# Kubernetes: RFC 1123 subdomain and label; RFC 1035 label; IANA service name; label value.
SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
LABEL = re.compile(r"(?=.{1,63}\Z)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])(?!.*--)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"(?=.{0,63}\Z)(?:[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)?")
_LABEL_KEY = re.compile(
    r"(?:(?=[^/]{1,253}/)[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?/)?(?=.{1,63}\Z)[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
)
ENV_NAME = re.compile(r"[^=\x00]+")
SUBDOMAIN_FORM = "a DNS name in lower case (RFC 1123)"
LABEL_FORM = "a DNS label in lower case (RFC 1123)"
PORT_NAME_FORM = "the name of a port (up to 15 of a-z, 0-9 and '-')"


def describe(value: Any) -> str:
    """Say what *value* is, for "expected ..., got ..."."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {value}"
        case str():
            shown = value if len(value) <= 64 else value[:61] + "..."
            return f"the text {shown!r}"
        case dict():
            return "a mapping"
        case _:
            return "a list"


def anything(tree: Tree, path: Path, unused: Unused) -> None:
    """Accept every value."""


def text(pattern: re.Pattern[str] | None = None, form: str = "") -> Check:
    """A text; with *pattern*, one that matches as a whole. *form* says it in words."""

    def check(tree: Tree, path: Path, unused: Unused) -> None:
        _need_text(tree.value, path)
        if pattern is not None and not pattern.fullmatch(tree.value):
            raise FieldError(path, f"{describe(tree.value)} is not {form}")

    return check


def choice(*allowed: str) -> Check:
    """One of a few texts."""

    def check(tree: Tree, path: Path, unused: Unused) -> None:
        _need_text(tree.value, path)
        if tree.value not in allowed:
            raise FieldError(path, f"expected {_either(allowed)}, got {describe(tree.value)}")

    return check


def number(low: int, high: int = 2**31 - 1) -> Check:
    """A whole number of a range."""

    def check(tree: Tree, path: Path, unused: Unused) -> None:
        if type(tree.value) is not int or not low <= tree.value <= high:
            hint = "; remove the quotes" if _is_quoted_number(tree.value) else ""
            wanted = f"a number from {low} to {high}"
            raise FieldError(path, f"expected {wanted}, got {describe(tree.value)}{hint}")

    return check


port = number(1, 65535)


def port_or_name(tree: Tree, path: Path, unused: Unused) -> None:
    """A port number, or the name of a container's port."""
    if isinstance(tree.value, str):
        if _is_quoted_number(tree.value):
            raise FieldError(path, f"expected a port, got {describe(tree.value)}; remove the quotes")
        text(PORT_NAME, PORT_NAME_FORM)(tree, path, unused)
    else:
        port(tree, path, unused)


def port_text(tree: Tree, path: Path, unused: Unused) -> None:
    """A port number as text, as policies and routes of Istio write it."""
    _need_text(tree.value, path)
    if not re.fullmatch(r"[1-9][0-9]{0,4}", tree.value) or int(tree.value) > 65535:
        raise FieldError(path, f"expected a number from 1 to 65535 as text, got {describe(tree.value)}")


def flag(tree: Tree, path: Path, unused: Unused) -> None:
    """True or false."""
    if not isinstance(tree.value, bool):
        raise FieldError(path, f"expected true or false, got {describe(tree.value)}")


def text_map(tree: Tree, path: Path, unused: Unused) -> None:
    """A mapping from text to text."""
    for key, value in _need_mapping(tree, path).items():
        _need_text(value.value, (*path, key))


def no_namespace(tree: Tree, path: Path, unused: Unused) -> None:
    """Empty, as kubectl leaves it on some objects that are in no namespace."""
    if tree.value != "":
        raise FieldError(path, "objects of this kind are in no namespace")


def map_of(key: Check, item: Check) -> Check:
    """A mapping whose keys are data."""

    def check(tree: Tree, path: Path, unused: Unused) -> None:
        for name, value in _need_mapping(tree, path).items():
            key(Tree(name, tree.key_lines[name]), (*path, name), unused)
            item(value, (*path, name), unused)

    return check


def labels(tree: Tree, path: Path, unused: Unused) -> None:
    """A mapping of label keys to label values."""
    text_map(tree, path, unused)
    for key, value in tree.value.items():
        if not _LABEL_KEY.fullmatch(key):
            raise FieldError((*path, key), f"{key!r} is not a label name")
        if not _LABEL_VALUE.fullmatch(value.value):
            raise FieldError((*path, key), f"{describe(value.value)} is not a label value")


def list_of(item: Check, unique: str = "") -> Check:
    """A list; with *unique*, no two items may have the same value in that field."""

    def check(tree: Tree, path: Path, unused: Unused) -> None:
        if not isinstance(tree.value, list):
            raise FieldError(path, f"expected a list, got {describe(tree.value)}")
        seen: set[Any] = set()
        for index, each in enumerate(tree.value):
            item(each, (*path, index), unused)
            name = each.value[unique].value if unique and unique in each.value else None
            if name is not None and name in seen:
                raise FieldError((*path, index, unique), f"duplicate {unique} {name!r}")
            seen.add(name)

    return check


def struct(fields: Mapping[str, Check], *, unused: str = "", required: Collection[str] = ()) -> Check:
    """A mapping with known fields.

    Args:
        fields: Name to check.
        unused: Further names, separated by spaces, that are accepted and noted.
        required: Names that must be set.
    """
    ignored = unused.split()

    def check(tree: Tree, path: Path, noted: Unused) -> None:
        for key, value in _need_mapping(tree, path).items():
            if key in ignored:
                noted.add(_pattern((*path, key)))
            elif key not in fields:
                known = [*fields, *ignored]
                raise FieldError((*path, key), f"unknown field{suggestion(key, known)}")
            elif value.value is not None:
                fields[key](value, (*path, key), noted)
        for key in required:
            if key not in tree.value or tree.value[key].value is None:
                raise FieldError((*path, key), "is missing")

    return check


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the nearest of *known*, or ""."""
    folded = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.75)
    return f" (did you mean {folded[near[0]]}?)" if near else ""


def _need_mapping(tree: Tree, path: Path) -> dict[str, Tree]:
    if not isinstance(tree.value, dict):
        raise FieldError(path, f"expected a mapping, got {describe(tree.value)}")
    return tree.value


def _need_text(value: Any, path: Path) -> None:
    if not isinstance(value, str):
        hint = "; quote it" if isinstance(value, int | float) else ""
        raise FieldError(path, f"expected text, got {describe(value)}{hint}")


def _is_quoted_number(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdigit()


def _either(words: Collection[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} or {last}" if most else last


def _pattern(path: Path) -> str:
    written = "".join("[]" if isinstance(part, int) else f".{part}" for part in path)
    return written.removeprefix(".")
