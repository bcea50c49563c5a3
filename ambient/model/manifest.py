"""Manifests: YAML or JSON text in, checked objects out, or one line that says where and why not.

Floor 0: text is an argument, files are the caller's. Whole or nothing: the first thing that is not
acceptable ends it. What Kubernetes knows and the mesh does not use is accepted and said once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ambient.errors import ConfigError
from ambient.model.authorization import check_security
from ambient.model.fit import check_service
from ambient.model.kinds import KIND_NAMES, WAYPOINT_CLASS, Kind, kinds_named
from ambient.model.objects import DEFAULT_NAMESPACE, FieldError, Object
from ambient.model.podspec import check_pod
from ambient.model.schema import describe, suggestion
from ambient.model.tree import Tree, load_trees


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the files say. *warnings*: what is known and not used, once each."""

    objects: tuple[Object, ...]
    warnings: tuple[str, ...] = ()


# What a check of single fields cannot see: parts that have to fit together.
_FITS = {
    "Service": check_service,
    "Pod": check_pod,
    "Deployment": check_pod,
    "AuthorizationPolicy": check_security,
    "PeerAuthentication": check_security,
}


@dataclass(slots=True)
class _Noted:
    """What was met on the way: where each object is, and what will not be used."""

    origins: dict[tuple[str, str, str, str], str] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)
    fields: dict[str, set[str]] = field(default_factory=dict)

    def claim(self, obj: Object) -> None:
        first = self.origins.setdefault(obj.key, obj.origin)
        if first is not obj.origin:
            raise obj.error(f"{obj} is already defined at {first}")

    def warnings(self) -> Iterator[str]:
        if any(kind == "NetworkPolicy" for _, kind, _, _ in self.origins):
            yield "NetworkPolicy is not enforced here; ambient check --pre namespace/NS reads it"
        if self.kinds:
            yield f"kinds accepted and not used: {', '.join(sorted(self.kinds))}"
        for kind in sorted(self.fields):
            if self.fields[kind]:
                yield f"{kind} fields accepted and not used: {', '.join(sorted(self.fields[kind]))}"


def parse_manifests(files: Iterable[tuple[str, str]], *, namespace: str = DEFAULT_NAMESPACE) -> Parsed:
    """Read every (path, text), whole or not at all.

    Lists are taken apart. Pods that belong to a Deployment of the same files are left out: the
    Deployment makes its own.

    Args:
        files: Path for messages, and text.
        namespace: For objects that name none.

    Raises:
        ConfigError: ``file:line: reason`` of the first thing that is not acceptable.
    """
    noted, objects, owners = _Noted(), [], {}
    for path, text in files:
        shown = _printable(path)
        for tree in load_trees(shown, text):
            for item in _items(shown, tree):
                made = _read(item, f"{shown}:{item.line}", namespace, noted)
                if made is not None:
                    objects.append(made)
                    owners[made.key] = _owner(item)
    kept = [obj for obj in objects if not _made_by_deployment(obj, owners[obj.key], objects)]
    left = [f"pods left out, as their Deployment makes its own: {len(objects) - len(kept)}"]
    return Parsed(tuple(kept), (*noted.warnings(), *(left if len(kept) < len(objects) else ())))


def parse_object(body: Mapping[str, Any], origin: str = "", *, namespace: str = DEFAULT_NAMESPACE) -> Object:
    """Check one object that is plain data already (from the admin wire).

    Raises:
        ConfigError: ``origin: reason``; also for a kind that is known and not used.
    """
    try:
        tree = Tree.of(dict(body))
    except ConfigError as exc:
        raise ConfigError(f"{origin or 'object'}: {exc}") from exc
    made = _read(tree, origin, namespace, _Noted())
    if made is None:
        raise ConfigError(f"{origin or 'object'}: kind {body['kind']} is not used by the mesh")
    return made


def _items(path: str, tree: Tree, depth: int = 0) -> Iterator[Tree]:
    """Take Lists apart: ``kind: List``, and the typed ones whose items leave their kind out."""
    if not isinstance(tree.value, dict):
        raise ConfigError(f"{path}:{tree.line}: expected an object, got {describe(tree.value)}")
    kind = _text_of(tree, "kind")
    if kind != "List" and kind.removesuffix("List") not in KIND_NAMES - {kind}:
        yield tree
        return
    items = tree.value.get("items")
    if items is None or not isinstance(items.value, list):
        raise ConfigError(f"{path}:{tree.line}: a {kind} needs a list of items")
    for item in items.value:
        if kind != "List" and isinstance(item.value, dict):
            _complete(item, tree, kind.removesuffix("List"))
        yield from _items(path, item)


def _complete(item: Tree, listed: Tree, kind: str) -> None:
    for key, tree in (("kind", Tree(kind, item.line)), ("apiVersion", listed.value.get("apiVersion"))):
        if tree is not None and key not in item.value:
            item.value[key] = tree
            item.key_lines[key] = item.line


def _read(tree: Tree, origin: str, namespace: str, noted: _Noted) -> Object | None:
    """Make the object that *tree* describes; None if its kind is only known."""
    place = origin.rpartition(":")[0]
    try:
        kind = _kind(tree)
        unused: set[str] = set()
        if kind.check is not None:
            kind.check(tree, (), unused)
        obj = _object(tree, kind, origin, namespace)
        noted.claim(obj)
        if kind.check is None or _foreign_gateway(obj):
            noted.kinds.add(kind.name)
            return None
        if kind.name in _FITS:
            _FITS[kind.name](obj)
    except FieldError as exc:
        line = tree.line_of(exc.path)
        raise ConfigError(f"{f'{place}:{line}' if line else origin or 'object'}: {exc}") from exc
    noted.fields.setdefault(kind.name, set()).update(unused)
    return obj


def _kind(tree: Tree) -> Kind:
    name, api_version = _required_text(tree, "kind"), _required_text(tree, "apiVersion")
    kinds = kinds_named(name)
    if not kinds:
        raise FieldError(("kind",), f"unknown kind {name!r}{suggestion(name, KIND_NAMES)}")
    for kind in kinds:
        if kind.accepts(api_version):
            return kind
    expected = " or ".join(version for kind in kinds for version in kind.api_versions())
    raise FieldError(("apiVersion",), f"unknown version {api_version!r} of {name}, expected {expected}")


def _object(tree: Tree, kind: Kind, origin: str, namespace: str) -> Object:
    body = tree.plain()
    metadata = body.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise FieldError(("metadata", "name"), "is missing")
    if kind.check is not None and kind.namespaced:
        metadata.setdefault("namespace", namespace)
    return Object(
        kind=kind.name,
        api_version=body["apiVersion"],
        namespace=str(metadata.get("namespace", "")),
        name=metadata["name"],
        labels=metadata.get("labels") or {},
        annotations=metadata.get("annotations") or {},
        body=body,
        origin=origin,
    )


def _foreign_gateway(obj: Object) -> bool:
    return obj.kind == "Gateway" and obj.spec["gatewayClassName"] != WAYPOINT_CLASS


def _owner(tree: Tree) -> str:
    """Name of the ReplicaSet that made the pod, or ""."""
    owners = tree.plain()["metadata"].get("ownerReferences")
    for owner in owners if isinstance(owners, list) else ():
        if isinstance(owner, dict) and owner.get("kind") == "ReplicaSet":
            return str(owner.get("name", ""))
    return ""


def _made_by_deployment(obj: Object, owner: str, objects: Iterable[Object]) -> bool:
    deployment = owner.rpartition("-")[0]
    return (
        obj.kind == "Pod"
        and deployment != ""
        and any(
            o.kind == "Deployment" and (o.namespace, o.name) == (obj.namespace, deployment) for o in objects
        )
    )


def _required_text(tree: Tree, key: str) -> str:
    if not _text_of(tree, key):
        found = tree.value.get(key)
        reason = "is missing" if found is None else f"expected text, got {describe(found.value)}"
        raise FieldError((key,), reason)
    return _text_of(tree, key)


def _text_of(tree: Tree, key: str) -> str:
    found = tree.value.get(key)
    return found.value if found is not None and isinstance(found.value, str) else ""


def _printable(path: str) -> str:
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in path)
