"""A certificate that is taken back while tunnels of it are open: they end, and nobody else's."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ambient.engine.revocations import Revocations
from ambient.model.record import Direction, Flag
from ambient.model.workload import Workload
from tests.flow.loopback import LoopbackMesh, application, echo, expect_reset, run_mesh, until
from tests.hostile.forge import Signer
from tests.hostile.test_crl import crl
from ztunnel.revoked import watch_revocations


@asynccontextmanager
async def watched(mesh: LoopbackMesh, file: Path) -> AsyncIterator[None]:
    """Every ztunnel of *mesh* goes by the lists in *file*."""
    file.write_bytes(crl(Signer.of(mesh.svids.authority)))
    mesh.reactor.revocations = Revocations(str(file), pytest.fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_revocations, mesh.reactor, mesh.proxies.tunnels)
        yield
        nursery.cancel_scope.cancel()


def revoke(mesh: LoopbackMesh, whom: Workload, file: Path) -> None:
    """Take back the certificate that *whom* uses."""
    leaf = mesh.svids._svids[whom.identity].chain[0]
    beside = file.with_suffix(".new")
    beside.write_bytes(crl(Signer.of(mesh.svids.authority), leaf))
    beside.replace(file)


@pytest.mark.parametrize("revoked", ["source", "destination"])
def test_open_tunnels_of_a_revoked_peer_end(
    revoked: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever end it is, whoever sees it ends them; the reason is that of a refused handshake."""
    run_mesh(lambda mesh: open_tunnels_end(mesh, revoked, tmp_path, caplog), seconds=60)


async def open_tunnels_end(
    mesh: LoopbackMesh, revoked: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the *revoked* end; and those of others do not."""
    web, other, api, store = (mesh.workload(name) for name in ("web", "other", "api", "store"))
    for workload in (web, other, api, store):
        await mesh.enroll(workload)
    file = tmp_path / "crl.pem"
    async with (
        application(api, 8080, echo),
        application(store, 8080, echo),
        watched(mesh, file),
    ):
        cut = await mesh.connect(web, (api.addresses[0], 8080))
        kept = await mesh.connect(other, (store.addresses[0], 8080))
        for stream in (cut, kept):
            await stream.send_all(b"1")
            assert await stream.receive_some() == b"1"

        who = web if revoked == "source" else api
        with caplog.at_level(logging.WARNING, "ztunnel"):
            revoke(mesh, who, file)
            with pytest.raises(trio.BrokenResourceError), trio.fail_after(20):
                assert await cut.receive_some() == b"never"
        records = await mesh.records(2)

        await kept.send_all(b"2")
        assert await kept.receive_some() == b"2"
        await expect_reset(mesh.connect(web, (api.addresses[0], 8080)))
        for stream in (cut, kept):
            await stream.aclose()
        await until(lambda: not any(len(proxy.context.open) for proxy in mesh.proxies.all()))

    direction = Direction.INBOUND if revoked == "source" else Direction.OUTBOUND
    reason = f"tls failure: revoked: the certificate of {who.identity} was revoked"
    seen = [record for record in records if record.direction is direction and not record.early]
    assert [(record.error, record.flag) for record in seen] == [(reason, Flag.TLS_FAILURE)]
    assert [each for each in caplog.messages if "open tunnels ended" in each] == [
        f"1 open tunnels ended: the certificate of {who.identity} was revoked"
    ]


def test_an_idle_tunnel_of_a_revoked_peer_leaves_a_record(tmp_path: Path) -> None:
    """It carries nothing, and would have carried the next request."""
    run_mesh(lambda mesh: idle_tunnel_ends(mesh, tmp_path), seconds=60)


async def idle_tunnel_ends(mesh: LoopbackMesh, tmp_path: Path) -> None:
    """At both ends."""
    web, api = mesh.workload("web"), mesh.workload("api")
    for workload in (web, api):
        await mesh.enroll(workload)
    file = tmp_path / "crl.pem"
    async with application(api, 8080, echo), watched(mesh, file):
        stream = await mesh.connect(web, (api.addresses[0], 8080))
        await stream.send_all(b"1")
        assert await stream.receive_some() == b"1"
        await stream.aclose()
        await mesh.records(2)
        assert len(list(mesh.proxies.tunnels())) == 2

        revoke(mesh, web, file)

        await until(lambda: not list(mesh.proxies.tunnels()))
        reasons = [record.error for record in mesh.journal.records if record.error]
    assert reasons == [f"tls failure: revoked: the certificate of {web.identity} was revoked"]
