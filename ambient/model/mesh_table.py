"""A look-up table that takes in a large change without anybody seeing half of it.

Floor 0. What a change touches is gathered beside the table, step by step, while lookups go on in ``now``;
then it counts at once::

    table.begin(afresh=False)
    table.put("a", value)          # as often as need be, at leisure
    for _ in table.merging(): ...  # the same
    table.commit()                 # the moment
    for _ in table.clearing(): ...

A small change costs what it touches, whatever the size of the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

V = TypeVar("V")

# Entries that are copied or let go in one step: C does it, at 0.05 to 0.2 us each.
STEP_ENTRIES = 2_000
# Up to so many are put into the table as it stands, which is the moment: some 0.2 ms. Measured.
IN_PLACE_ENTRIES = 2_000


class Table(Generic[V]):
    """Values by key.

    Attributes:
        now: What counts; read it, and never change it.
    """

    __slots__ = ("_afresh", "_next", "_old", "_touched", "now")

    def __init__(self) -> None:
        self.now: dict[str, V] = {}
        self._touched: dict[str, V | None] = {}
        self._afresh = False
        self._next: dict[str, V] | None = None
        self._old: dict[str, V] = {}

    def begin(self, *, afresh: bool) -> None:
        """A change begins; what an earlier one left half done is forgotten.

        Args:
            afresh: What the change does not name is gone.
        """
        self._touched = {}
        self._afresh = afresh
        self._next = None

    @property
    def changes(self) -> bool:
        """Whether the coming change is about anything here."""
        return bool(self._touched) or self._afresh

    def coming(self, key: str) -> V | None:
        """The value of *key* as it will be."""
        if key in self._touched or self._afresh:
            return self._touched.get(key)
        return self.now.get(key)

    def put(self, key: str, value: V | None) -> None:
        """Give *key* another value, or (None) take it out."""
        self._touched[key] = value

    def touches(self, key: str) -> bool:
        """Whether the coming change is about *key*."""
        return key in self._touched or self._afresh

    def forget_touched(self, answers: dict[str, Any]) -> None:
        """Take out of *answers* every key that the coming change is about."""
        if not answers:
            return
        if self._afresh or len(self._touched) >= len(answers):
            for key in [key for key in answers if self.touches(key)]:
                del answers[key]
            return
        for key in self._touched:
            answers.pop(key, None)

    def merging(self) -> Iterator[None]:
        """The steps between the last ``put`` and ``commit``: a large change is merged into a copy."""
        if not self._afresh and len(self._touched) <= IN_PLACE_ENTRIES:
            return
        merged: dict[str, V] = {}
        if not self._afresh:
            for step in _steps(self.now):
                merged.update(step)
                yield
        for touched in _steps(self._touched):
            for key, value in touched.items():
                _set(merged, key, value)
            yield
        self._next = merged

    def commit(self) -> None:
        """The change counts."""
        if self._next is not None:
            self._old, self.now = self.now, self._next
        else:
            for key, value in self._touched.items():
                if (old := self.now.get(key)) is not None:
                    self._old[key] = old
                _set(self.now, key, value)
        self._next = None
        self._afresh = False

    def clearing(self) -> Iterator[None]:
        """The steps after ``commit``, in which what was replaced is let go: that takes time, too."""
        for gone in (self._old, self._touched):
            while gone:
                for _ in range(min(STEP_ENTRIES, len(gone))):
                    gone.popitem()
                if gone:
                    yield
        self._old = {}
        self._touched = {}


class Index(Table[set[str]]):
    """Names and the keys that each of them means; a name that means none is not there."""

    __slots__ = ()

    def add(self, name: str, key: str) -> None:
        """*name* will mean *key*, too."""
        self._own(name).add(key)

    def discard(self, name: str, key: str) -> None:
        """*name* will not mean *key*."""
        if self.coming(name) is None:
            return
        keys = self._own(name)
        keys.discard(key)
        if not keys:
            self.put(name, None)

    def _own(self, name: str) -> set[str]:
        """The coming keys of *name*, in a set that is in no table yet."""
        keys = self._touched.get(name)
        if keys is None:
            keys = self._touched[name] = set() if name in self._touched else set(self.coming(name) or ())
        return keys


def _steps(entries: dict[str, V]) -> Iterator[dict[str, V]]:
    remaining = iter(entries.items())
    while step := dict(islice(remaining, STEP_ENTRIES)):
        yield step


def _set(table: dict[str, V], key: str, value: V | None) -> None:
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
