"""Manifests: YAML or JSON text in, checked objects out, or one line that says where and why not.

Floor 0: text is an argument, files are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ambient.model.objects import DEFAULT_NAMESPACE, Object


@dataclass(frozen=True, slots=True)
class Parsed:
    """What the files say. *warnings*: what is known and not used, once each."""

    objects: tuple[Object, ...]
    warnings: tuple[str, ...] = ()


def parse_manifests(files: Iterable[tuple[str, str]], *, namespace: str = DEFAULT_NAMESPACE) -> Parsed:
    """Read every (path, text), whole or not at all.

    Args:
        files: Path for messages, and text.
        namespace: For objects that name none.

    Raises:
        ConfigError: ``file:line: reason`` of the first thing that is not acceptable.
    """
    raise NotImplementedError


def parse_object(body: Mapping[str, Any], origin: str = "", *, namespace: str = DEFAULT_NAMESPACE) -> Object:
    """Check one object that is plain data already (from the admin wire).

    Raises:
        ConfigError: ``origin: reason``.
    """
    raise NotImplementedError
