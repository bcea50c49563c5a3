"""Model values on the wire: frozen dataclasses to msgpack maps and back, by their annotations.

Floor 1: sans-IO. One codec for every value of ``ambient.model`` (Workload, Service, Policy, PodSpec,
...), so that a field added to a value travels without a second place to remember.

Forms: a dataclass is a map of its fields, an enumeration its value, a tuple or set a list, a mapping
with text keys a map, any other mapping a list of pairs (the frame reader allows only text keys), a
``SpiffeId`` its URI. Decoding is strict: unknown fields, missing fields without a default and wrong
types (``True`` for a number included) are refused.
"""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from types import MappingProxyType
from typing import Any, TypeVar, Union

from ambient.errors import ConfigError, RemoteProtocolError
from ambient.model.identity import SpiffeId

T = TypeVar("T")
Codec = Callable[[Any], Any]

_SCALARS = (str, int, bool, float, bytes)


def to_wire(value: Any) -> dict[str, Any]:
    """Return the map that stands for the dataclass *value*."""
    cls: Any = type(value)
    encoded: dict[str, Any] = _encoder(cls)(value)
    return encoded


def from_wire(cls: type[T], value: object) -> T:
    """Build a *cls* from the map *value*.

    Raises:
        RemoteProtocolError: *value* is not one; the message names the field.
    """
    hint: Any = cls
    try:
        decoded: T = _decoder(hint)(value)
    except ConfigError as exc:
        raise RemoteProtocolError(f"{cls.__name__}: {exc}") from exc
    return decoded


def _same(value: Any) -> Any:
    return value


def _optional(hint: Any) -> Any | None:
    """Return X for ``X | None``, else None."""
    if typing.get_origin(hint) not in (Union, types.UnionType):
        return None
    inner = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return inner[0] if len(inner) == 1 else None


def _mapping_of(hint: Any) -> tuple[Any, Any] | None:
    """Return (K, V) for ``Mapping[K, V]`` or ``dict[K, V]``, else None."""
    origin = typing.get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        key, value = typing.get_args(hint)
        return key, value
    return None


@functools.cache
def _encoder(hint: Any) -> Codec:
    if hint in _SCALARS or hint is Any or hint is object:
        return _same
    if hint is SpiffeId:
        return str
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda value: value.value
    if is_dataclass(hint):
        return _dataclass_encoder(hint)
    if (inner := _optional(hint)) is not None:
        some = _encoder(inner)
        return lambda value: None if value is None else some(value)
    if (pair := _mapping_of(hint)) is not None:
        item = _encoder(pair[1])
        if pair[0] is str:
            return lambda value: {key: item(entry) for key, entry in value.items()}
        return lambda value: [[key, item(entry)] for key, entry in sorted(value.items())]
    return _sequence_encoder(hint)


def _dataclass_encoder(cls: Any) -> Codec:
    hints = typing.get_type_hints(cls)
    parts = [(each.name, _encoder(hints[each.name])) for each in fields(cls)]
    return lambda value: {name: encode(getattr(value, name)) for name, encode in parts}


def _sequence_encoder(hint: Any) -> Codec:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and not (len(args) == 2 and args[1] is ...):
        each = [_encoder(arg) for arg in args]
        return lambda value: [encode(entry) for encode, entry in zip(each, value, strict=True)]
    item = _encoder(args[0])
    if origin is frozenset:
        return lambda value: [item(entry) for entry in sorted(value, key=str)]
    return lambda value: [item(entry) for entry in value]


@functools.cache
def _decoder(hint: Any) -> Codec:
    if hint is Any or hint is object:
        return _same
    if hint in _SCALARS:
        return functools.partial(_scalar, hint)
    if hint is SpiffeId:
        return lambda value: SpiffeId.parse(_scalar(str, value))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return functools.partial(_member, hint)
    if is_dataclass(hint):
        return _dataclass_decoder(hint)
    if (inner := _optional(hint)) is not None:
        some = _decoder(inner)
        return lambda value: None if value is None else some(value)
    if (pair := _mapping_of(hint)) is not None:
        return functools.partial(_mapping, _decoder(pair[0]), _decoder(pair[1]), pair[0] is str)
    return _sequence_decoder(hint)


def _scalar(kind: type, value: Any) -> Any:
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise RemoteProtocolError(f"expected {kind.__name__}, got {type(value).__name__}")
    return value


def _member(enum: type[Enum], value: Any) -> Enum:
    try:
        return enum(value)
    except ValueError as exc:
        raise RemoteProtocolError(f"not a {enum.__name__}: {value!r}") from exc


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise RemoteProtocolError(f"expected a list, got {type(value).__name__}")
    return value


def _mapping(key: Codec, item: Codec, text_keys: bool, value: Any) -> Mapping[Any, Any]:
    if text_keys:
        if not isinstance(value, dict):
            raise RemoteProtocolError(f"expected a map, got {type(value).__name__}")
        return MappingProxyType({key(name): item(entry) for name, entry in value.items()})
    pairs = [_list(pair) for pair in _list(value)]
    if any(len(pair) != 2 for pair in pairs):
        raise RemoteProtocolError("expected pairs")
    return MappingProxyType({key(name): item(entry) for name, entry in pairs})


def _sequence_decoder(hint: Any) -> Codec:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and not (len(args) == 2 and args[1] is ...):
        return functools.partial(_fixed, tuple(_decoder(arg) for arg in args))
    if origin not in (tuple, list, frozenset):
        raise TypeError(f"no wire form for {hint!r}")
    item = _decoder(args[0])
    return lambda value: origin(item(entry) for entry in _list(value))


def _fixed(parts: tuple[Codec, ...], value: Any) -> tuple[Any, ...]:
    if len(_list(value)) != len(parts):
        raise RemoteProtocolError(f"expected {len(parts)} values, got {len(value)}")
    return tuple(decode(entry) for decode, entry in zip(parts, value, strict=True))


def _dataclass_decoder(cls: Any) -> Codec:
    hints = typing.get_type_hints(cls)
    parts = {each.name: _decoder(hints[each.name]) for each in fields(cls)}
    needed = frozenset(
        each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING
    )

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            raise RemoteProtocolError(f"expected a map for {cls.__name__}, got {type(value).__name__}")
        if odd := (value.keys() - parts.keys()) | (needed - value.keys()):
            raise RemoteProtocolError(f"{cls.__name__}: unknown or missing fields {sorted(map(str, odd))}")
        return cls(**{name: _field(cls, name, parts[name], entry) for name, entry in value.items()})

    return decode


def _field(cls: Any, name: str, decode: Codec, entry: Any) -> Any:
    try:
        return decode(entry)
    except RemoteProtocolError as exc:
        raise RemoteProtocolError(f"{cls.__name__}.{name}: {exc}") from exc
