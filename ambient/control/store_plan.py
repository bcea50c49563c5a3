"""The objects of a mesh, and what applying or deleting some of them makes of it. Pure.

A ``Store`` is a value: ``apply`` returns another one and what happened to each object, or raises and
nothing has happened. Labels that a command wrote (``enroll``, ``waypoint apply``) stand beside the object
as the file gave it, so that applying the same file again does not take them away: kubectl's three-way
merge, for the one field where it matters here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from ambient.errors import ConfigError
from ambient.model.objects import DEFAULT_NAMESPACE, Object

# kind, namespace, name. The API group is left out: no two kinds here share a name.
Key: TypeAlias = tuple[str, str, str]

# What Kubernetes and Istio bring along.
FIRST_NAMESPACES = (DEFAULT_NAMESPACE, "istio-system", "kube-system")

# What an API server adds to an object: a dump that is applied again must not count as changed.
_SERVER_FIELDS = ("creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One stored object.

    Attributes:
        given: As the file had it.
        labels: What commands wrote since; None takes a label of the file away.
        created: Unix seconds.
    """

    given: Object
    labels: Mapping[str, str | None] = field(default_factory=dict)
    created: float = 0.0
    # The object as it is: the file's, with the labels written over it. Made once: every pod asks for its
    # namespace's labels all the time, and may tell by their identity that they are what they were.
    object: Object = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "object", _labelled(self.given, self.labels))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to one object: ``created``, ``configured``, ``unchanged`` or ``deleted``."""

    kind: str
    namespace: str
    name: str
    result: str

    def as_dict(self) -> dict[str, str]:
        """As the admin wire carries it."""
        place = {"namespace": self.namespace} if self.namespace else {}
        return {"kind": self.kind, **place, "name": self.name, "result": self.result}


@dataclass(frozen=True, slots=True)
class Store:
    """Every object, by key."""

    entries: Mapping[Key, Entry] = field(default_factory=dict)

    @classmethod
    def fresh(cls, now: float) -> Store:
        """A store with the namespaces that are always there."""
        return cls(
            {key_of(each): Entry(given=each, created=now) for each in map(_namespace, FIRST_NAMESPACES)}
        )

    def of_kind(self, kind: str) -> tuple[Object, ...]:
        """All objects of *kind*, by namespace and name."""
        return tuple(self.entries[key].object for key in sorted(self.entries) if key[0] == kind)

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object, or None."""
        entry = self.entries.get((kind, namespace, name))
        return entry.object if entry else None

    def labels_of_namespace(self, name: str) -> Mapping[str, str]:
        """The labels of a namespace, empty if it does not exist."""
        found = self.get("Namespace", "", name)
        return found.labels if found else {}

    def apply(
        self, objects: Iterable[Object], now: float, check: Callable[[Store], None] = lambda _: None
    ) -> tuple[Store, tuple[Outcome, ...]]:
        """Create or change *objects*.

        A namespace that nobody made is made: ``kubectl get all -o yaml`` does not write it out.

        Args:
            check: Looks at the store as it would be; what it raises stops everything.

        Raises:
            ConfigError: an object cannot be accepted.
        """
        entries = dict(self.entries)
        outcomes: list[Outcome] = []
        given = list(objects)
        named = {each.name for each in given if each.kind == "Namespace"}
        missing = dict.fromkeys(each.namespace for each in given if each.namespace not in ("", *named))
        implied = [_namespace(name) for name in missing if ("Namespace", "", name) not in entries]
        for each in [*implied, *given]:
            outcomes.append(_put(entries, each, now))
        store = Store(entries)
        check(store)
        return store, tuple(outcomes)

    def delete(self, keys: Iterable[Key]) -> tuple[Store, tuple[Outcome, ...]]:
        """Delete *keys*; a namespace takes everything in it along.

        Raises:
            ConfigError: one of them does not exist, or is one that is always there.
        """
        wanted = list(keys)
        for kind, namespace, name in wanted:
            if (kind, namespace, name) not in self.entries:
                raise ConfigError(f"{kind.lower()} {name!r} does not exist{_in(namespace)}")
            if kind == "Namespace" and name in FIRST_NAMESPACES:
                raise ConfigError(f"namespace {name!r} cannot be deleted")
        spaces = {name for kind, _, name in wanted if kind == "Namespace"}
        entries = {key: e for key, e in self.entries.items() if key not in wanted and key[1] not in spaces}
        return Store(entries), tuple(Outcome(*key, "deleted") for key in wanted)

    def label(self, key: Key, labels: Mapping[str, str | None]) -> Store:
        """Write *labels* over those of one object; None removes a label.

        Raises:
            ConfigError: there is no such object.
        """
        if key not in self.entries:
            raise ConfigError(f"{key[0].lower()} {key[2]!r} does not exist{_in(key[1])}")
        entry = self.entries[key]
        merged = {**entry.labels, **labels}
        # What says the same as the file need not be remembered.
        kept = {name: value for name, value in merged.items() if entry.given.labels.get(name) != value}
        return Store({**self.entries, key: replace(entry, labels=kept)})


def key_of(obj: Object) -> Key:
    """The key under which *obj* is stored."""
    return obj.kind, obj.namespace, obj.name


def _labelled(given: Object, written: Mapping[str, str | None]) -> Object:
    if not written:
        return given
    merged = {**given.labels, **written}
    labels = {name: value for name, value in merged.items() if value is not None}
    metadata = {**given.body.get("metadata", {}), "labels": labels}
    return replace(given, labels=labels, body={**given.body, "metadata": metadata})


def plain(body: Mapping[str, Any]) -> dict[str, Any]:
    """*body* without what an API server adds."""
    metadata = {k: v for k, v in (body.get("metadata") or {}).items() if k not in _SERVER_FIELDS}
    return {**{k: v for k, v in body.items() if k not in ("status", "origin")}, "metadata": metadata}


def _put(entries: dict[Key, Entry], obj: Object, now: float) -> Outcome:
    key = key_of(obj)
    before = entries.get(key)
    if before is None:
        entries[key] = Entry(given=obj, created=now)
        return Outcome(*key, "created")
    # A label that the file names, or named, is the file's again; the others stay as they were written.
    files = {*obj.labels, *before.given.labels}
    labels = {name: value for name, value in before.labels.items() if name not in files}
    same = plain(before.given.body) == plain(obj.body) and labels == before.labels
    entries[key] = replace(before, given=obj, labels=labels)
    return Outcome(*key, "unchanged" if same else "configured")


def _namespace(name: str) -> Object:
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    return Object(
        kind="Namespace", api_version="v1", namespace="", name=name, labels={}, annotations={}, body=body
    )


def _in(namespace: str) -> str:
    return f" in namespace {namespace!r}" if namespace else ""
