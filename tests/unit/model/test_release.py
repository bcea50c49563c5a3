"""The number that is written twice is the same number."""

from __future__ import annotations

import tomllib
from pathlib import Path

from ambient.model.release import VERSION


def test_it_is_the_packages_own() -> None:
    """A release that forgets one of them would claim to be another."""
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())

    assert project["project"]["version"] == VERSION
