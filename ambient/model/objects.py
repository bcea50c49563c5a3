"""Objects as people write them: one Kubernetes, Gateway API or Istio object, checked and located.

Floor 0. ``ambient.model.manifest`` makes them from text; ``ambient.model.schema`` knows which fields
each kind has. Whoever holds an ``Object`` may rely on the types of its body.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ambient.errors import ConfigError

DEFAULT_NAMESPACE = "default"

# From the body of an object down to a field: ("spec", "ports", 0, "port").
Path = tuple[str | int, ...]


class FieldError(ConfigError):
    """A field of an object is not acceptable.

    Attributes:
        path: Where it is.
        reason: What is wrong, without the place.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path_text(path)}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """One object.

    Attributes:
        api_version: For example ``"apps/v1"``.
        namespace: "" for kinds that live outside namespaces.
        body: The whole object as plain data, ``apiVersion`` and ``metadata`` included.
        origin: ``file:line`` of its first line, or "" if it came from elsewhere.
    """

    kind: str
    api_version: str
    namespace: str
    name: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    body: Mapping[str, Any]
    origin: str = ""

    @property
    def group(self) -> str:
        """The API group: ``"apps"``; "" for the core group."""
        group, slash, _ = self.api_version.partition("/")
        return group if slash else ""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What only one object may have: group, kind, namespace, name."""
        return self.group, self.kind, self.namespace, self.name

    @property
    def spec(self) -> Mapping[str, Any]:
        """Its ``spec``, empty if there is none."""
        return self.body.get("spec") or {}

    def error(self, reason: str) -> ConfigError:
        """The error to raise for something wrong with this object."""
        return ConfigError(f"{self.origin or self}: {reason}")

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


def path_text(path: Path) -> str:
    """Write a path as people do: ``spec.ports[0].port``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def selects(selector: Mapping[str, Any] | None, labels: Mapping[str, str]) -> bool:
    """Whether a Kubernetes label selector (``matchLabels``, ``matchExpressions``) holds for *labels*."""
    if not selector:
        return True
    wanted = selector.get("matchLabels") or {}
    expressions = selector.get("matchExpressions") or ()
    return selects_labels(wanted, labels) and all(_expression_holds(each, labels) for each in expressions)


def match_labels(obj: Object) -> tuple[tuple[str, str], ...]:
    """The pairs that the ``selector.matchLabels`` of *obj* asks for, sorted."""
    selector = obj.spec.get("selector") or {}
    return tuple(sorted((selector.get("matchLabels") or {}).items()))


def selects_labels(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether *labels* holds every pair of *wanted*."""
    return all(labels.get(key) == value for key, value in wanted.items())


def _expression_holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value = labels.get(expression["key"])
    values = expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case _:  # DoesNotExist; the schema lets nothing else through.
            return value is None
