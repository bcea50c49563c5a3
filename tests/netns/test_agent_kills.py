"""A killed agent leaves nothing that its successor does not put right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import in_namespaces
from tests.netns import agent_kills

KILLS = 8


@pytest.mark.slow
@pytest.mark.timeout(120)
@in_namespaces
async def test_killed_at_any_point_of_an_enrollment(tmp_path: Path) -> None:
    """Rules never without listeners, no old connection cut, and in the end all or nothing. See benchmarks."""
    found = await agent_kills.run(tmp_path, KILLS, seed=7)

    assert found.total() == KILLS
