"""Every committed input, and some mutations of each, through its parser."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.run import mutated
from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parent / "corpus"
FILES = sorted(CORPUS.glob("*/*"))
MUTATIONS = 50


def test_every_target_has_a_corpus() -> None:
    """And no corpus is without its target."""
    assert {file.parent.name for file in FILES} == set(TARGETS)


@pytest.mark.parametrize("file", FILES, ids=[f"{file.parent.name}-{file.stem}" for file in FILES])
def test_replay(file: Path) -> None:
    """It raises its own errors only, and so do inputs like it; the mutations are the same at each run."""
    target, data = TARGETS[file.parent.name], file.read_bytes()
    target(data)
    corpus = [each.read_bytes() for each in FILES if each.parent == file.parent]
    chance = random.Random(file.name)
    for _ in range(MUTATIONS):
        target(mutated(data, corpus, chance))
