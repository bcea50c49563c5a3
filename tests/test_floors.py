"""The house has floors: imports go down only, and the low floors touch no I/O."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = {
    "ambient.errors": -1,
    "ambient.own_code": -1,
    "ambient.model": 0,
    "ambient.wire": 1,
    "ambient.pki": 1,
    "ambient.engine": 2,
    "ztunnel": 3,
    "waypoint": 3,
    "ambient.control": 3,
    "ambient.redirect": 3,
    "ambient.fabric": 4,
    "ambient.bench": 5,
    "ambient.sim": 5,
    "ambient.cli": 6,
}
IO_MODULES = {"socket", "trio", "ssl", "time", "random", "os", "logging", "subprocess", "threading", "select"}


def package_of(module: str) -> str | None:
    """The package of the house that *module* belongs to, or None for a stranger."""
    names = [name for name in FLOORS if module == name or module.startswith(name + ".")]
    return names[0] if names else None


def imports(source: str) -> Iterator[str]:
    """Every module that *source* imports, at any depth of the code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def broken_rules(module: str, source: str) -> list[str]:
    """What *source*, living at *module*, may not import."""
    here = package_of(module)
    if here is None:
        return [f"{module}: belongs to no floor"] if module not in ("ambient", "ambient.__init__") else []
    found = []
    for name in imports(source):
        there = package_of(name)
        if there is not None and there != here and FLOORS[there] >= FLOORS[here]:
            found.append(f"{module} imports {name}: not a lower floor")
        if FLOORS[here] <= 1 and name.split(".")[0] in IO_MODULES:
            found.append(f"{module} imports {name}: floors 0 and 1 do no I/O")
    return found


def modules() -> Iterator[tuple[str, Path]]:
    for package in ("ambient", "ztunnel", "waypoint"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


def test_every_import_goes_down() -> None:
    """An arrow upwards or sideways is a decision, not an accident."""
    found = [rule for name, path in modules() for rule in broken_rules(name, path.read_text())]

    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ambient.model.route", "import socket"),
        ("ambient.model.route", "from ambient.engine.relay import relay"),
        ("ztunnel.inbound", "import waypoint.routes"),
        ("ambient.wire.hbone", "from ambient.pki import authority"),
        ("ambient.nowhere", "import json"),
    ],
    ids=["io-below", "upwards", "sideways", "same-floor", "no-floor"],
)
def test_the_rule_can_fail(module: str, source: str) -> None:
    """A guard that nothing trips is no guard."""
    assert broken_rules(module, source)
