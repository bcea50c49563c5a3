"""What is driven: a manifest, the pod the load comes from, and where it goes.

Floor 5. A scenario is an ordinary manifest in which one pod carries the annotation ``TARGET``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ambient
from ambient.errors import ConfigError

# On the pod the load comes from: the URL it drives.
TARGET = "ambient.dev/load-target"


@dataclass(frozen=True, slots=True)
class Scenario:
    """Which pod drives what.

    Attributes:
        pod: Name of the client pod.
        url: As the client pod resolves it.
    """

    name: str
    namespace: str
    pod: str
    url: str


def bundled(name: str) -> Path:
    """The path of a manifest that ships with the program.

    Raises:
        ConfigError: there is none of that name.
    """
    package = Path(ambient.__file__).parent
    # Installed, the examples lie beside the fabric; in a source tree, where people read them.
    for path in (package / "fabric" / f"{name}.yaml", package.parent / "examples" / f"{name}.yaml"):
        if path.is_file():
            return path
    raise ConfigError(f"no scenario {name!r}; give bookinfo or a file")


def manifest(scenario: str) -> Path:
    """The file of *scenario*: a path, or the name of one that ships with the program."""
    path = Path(scenario)
    return path if path.suffix or path.exists() else bundled(scenario)


def name_of(scenario: str) -> str:
    """How a report calls it."""
    return Path(scenario).stem


def find(name: str, pods: Sequence[Mapping[str, Any]]) -> Scenario:
    """The client among *pods* (Kubernetes-shaped).

    Raises:
        ConfigError: not exactly one pod carries the annotation.
    """
    found = [pod for pod in pods if TARGET in (pod["metadata"].get("annotations") or {})]
    if len(found) != 1:
        raise ConfigError(
            f"scenario {name}: {len(found)} pods carry the annotation {TARGET}, need exactly one"
        )
    meta = found[0]["metadata"]
    return Scenario(name, meta["namespace"], meta["name"], meta["annotations"][TARGET])
