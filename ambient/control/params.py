"""Reading the parameters of calls: the right type, or one line that says which is wrong. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from ambient.errors import ConfigError

T = TypeVar("T")
_MISSING: Any = object()


def take(params: Mapping[str, Any], name: str, kind: type[T], default: T = _MISSING) -> T:
    """Return ``params[name]``, which must be a *kind*; None counts as not given.

    Raises:
        ConfigError: it is missing and has no default, or is of another type.
    """
    value = params.get(name)
    if value is None:
        if default is _MISSING:
            raise ConfigError(f"the call lacks {name!r}")
        return default
    if kind is float and type(value) is int:
        value = float(value)
    # bool is an int to isinstance, and never what is meant by one.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ConfigError(f"{name!r} must be {kind.__name__}, not {type(value).__name__}")
    return value


def take_one_of(params: Mapping[str, Any], name: str, choices: tuple[str, ...], default: str = "") -> str:
    """Return ``params[name]``, which must be one of *choices*.

    Raises:
        ConfigError: it is not.
    """
    value = take(params, name, str, default or _MISSING)
    if value not in choices:
        raise ConfigError(f"{name!r} must be one of {', '.join(choices)}, not {value!r}")
    return value
