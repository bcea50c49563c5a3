"""Subclasses whose inherited methods are as fast as if no other class had them.

Below the floors. CPython (3.11 and later) makes the instructions of a function fit the type that they see,
and keeps that in the function's code. Where two subclasses take turns in the same code it fits neither:
attributes are looked up the long way, some 100 instructions each. A copy of the code fits its own class.
"""

from __future__ import annotations

from types import FunctionType
from typing import TypeVar

C = TypeVar("C", bound=type)


def own_code(cls: C) -> C:
    """Give *cls* copies of the functions that it inherits; only for bases that are changed no more."""
    for base in cls.__mro__[1:-1]:
        for name, found in vars(base).items():
            if isinstance(found, FunctionType) and getattr(cls, name) is found:
                copy = FunctionType(
                    found.__code__.replace(), found.__globals__, name, found.__defaults__, found.__closure__
                )
                copy.__kwdefaults__, copy.__doc__ = found.__kwdefaults__, found.__doc__
                copy.__annotations__, copy.__qualname__ = found.__annotations__, found.__qualname__
                copy.__dict__.update(found.__dict__)
                setattr(cls, name, copy)
    return cls
