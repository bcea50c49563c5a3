"""RFC 9113 as h2spec asks it, in strict mode, of the whole of :15008."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from tests.flow.loopback import LoopbackMesh, run_mesh
from tests.hostile.h2spec import find_h2spec, forward, run_h2spec

H2SPEC = find_h2spec()

# What we answer otherwise than h2spec expects, each with the section of RFC 9113 that lets us.
ACCEPTED: dict[str, str] = {}


@pytest.mark.slow
@pytest.mark.skipif(H2SPEC is None, reason="no h2spec (go install github.com/summerwind/h2spec/cmd/h2spec)")
def test_every_case_of_strict_mode_holds(tmp_path: Path) -> None:
    """147 cases; a difference is listed above or it is a fault."""
    found: dict[str, str] = {}

    async def body(mesh: LoopbackMesh) -> None:
        web, api = mesh.workload("web"), mesh.workload("api")
        await mesh.enroll(api)
        async with trio.open_nursery() as nursery:
            port = await nursery.start(partial(forward, mesh, web, api))
            assert H2SPEC is not None
            found.update(await run_h2spec(H2SPEC, port, tmp_path / "report.xml"))
            nursery.cancel_scope.cancel()

    run_mesh(body, seconds=170)
    assert len(found) > 140
    assert {name: outcome for name, outcome in found.items() if outcome != "passed"} == ACCEPTED
