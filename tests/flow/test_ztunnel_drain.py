"""The way out: nothing new, the old goes on, and somebody hears when it is over."""

from __future__ import annotations

import dataclasses
import socket

import pytest
import trio
import trio.testing

from ambient.errors import Unavailable
from ambient.model.mesh import Change
from ambient.model.workload import Protocol, Workload
from tests.flow.loopback import (
    LoopbackMesh,
    LoopbackNetwork,
    application,
    echo,
    exchange,
    in_mesh,
    info_of,
    read_all,
    until,
)
from ztunnel.connection import DRAINED


async def pair(mesh: LoopbackMesh) -> tuple[Workload, Workload]:
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    return web, api


@in_mesh
async def test_a_live_connection_survives_the_removal_of_both_ends(mesh: LoopbackMesh) -> None:
    """Un-enrollment is not a reason to cut a download."""
    web, api = await pair(mesh)
    async with application(api, 8080, echo):
        stream = await mesh.connect(web, (api.addresses[0], 8080))
        await exchange(stream, b"before")

        assert await mesh.proxies.remove(api.uid)
        assert await mesh.proxies.remove(web.uid)
        await trio.sleep(0.4)  # Not luck: longer than GOAWAY_DELAY, so that the GOAWAY has arrived.
        await exchange(stream, b"after")
        assert mesh.drained == []

        await stream.send_eof()
        assert await read_all(stream) == b""
        await stream.aclose()
        records = await mesh.records(2)
        await until(lambda: len(mesh.drained) == 2)
    assert [record.error for record in records] == ["", ""]
    assert sorted(mesh.drained) == sorted([web.uid, api.uid])
    assert sorted(mesh.svids.forgotten, key=str) == sorted([web.identity, api.identity], key=str)


@in_mesh
async def test_listeners_are_closed_at_once(mesh: LoopbackMesh) -> None:
    """The agent has taken the rules away: who knocks now is lost."""
    web, api = await pair(mesh)
    await mesh.proxies.remove(web.uid)

    with pytest.raises(OSError, match="refused"):
        await mesh.connect(web, (api.addresses[0], 8080))
    await until(lambda: mesh.drained == [web.uid])


@in_mesh
async def test_what_waits_in_the_accept_queue_is_served(mesh: LoopbackMesh) -> None:
    """Closing a listener resets whatever nobody has accepted yet."""
    web, api = await pair(mesh)
    streams: list[trio.SocketStream] = []

    async def knock_at_the_last_moment(seconds: float) -> None:
        # In place of the patience of ``drain``, and without ever letting the reactor run.
        for _ in range(50):
            sock = socket.socket()
            sock.bind((web.addresses[0], 0))
            mesh.wanted[sock.getsockname()] = (api.addresses[0], 8080)
            sock.connect((web.addresses[0], 15001))
            streams.append(trio.SocketStream(trio.socket.from_stdlib_socket(sock)))

    async with application(api, 8080, echo):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ztunnel.workload_proxy.trio.sleep", knock_at_the_last_moment)
            await mesh.proxies.remove(web.uid)
        for stream in streams:
            await exchange(stream, b"served")
            await stream.aclose()
        await mesh.records(100)
    assert all(record.error == "" for record in mesh.journal.records)


@in_mesh
async def test_who_comes_after_the_last_has_gone_is_served_as_long_as_the_door_is_open(
    mesh: LoopbackMesh,
) -> None:
    """A busy pod has moments without any connection; in such a one it is not drained yet."""
    web, api = await pair(mesh)
    async with application(api, 8080, echo):
        last = await mesh.connect(web, (api.addresses[0], 8080))
        await exchange(last, b"1")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ztunnel.workload_proxy.KNOCKING_SECONDS", 1.0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mesh.proxies.remove, web.uid)
                await trio.testing.wait_all_tasks_blocked(0.01)
                await last.aclose()
                await mesh.records(2)
                await trio.sleep(0.05)  # Not luck: here it would be said to be drained.
                assert mesh.drained == []
                one_more = await mesh.connect(web, (api.addresses[0], 8080))
                await exchange(one_more, b"2")
        await one_more.aclose()
        await until(lambda: mesh.drained == [web.uid])
    assert all(record.error == "" for record in mesh.journal.records)


@in_mesh
async def test_idle_tunnels_of_a_leaving_pod_are_closed(mesh: LoopbackMesh) -> None:
    """They would keep the other nodes busy for as long as its slowest download lasts."""
    web, api = await pair(mesh)
    other = mesh.workload("other")
    await mesh.enroll(other)
    async with application(api, 8080, echo), application(other, 8080, echo):
        live = await mesh.connect(web, (api.addresses[0], 8080))
        await exchange(live, b"1")
        short = await mesh.connect(web, (other.addresses[0], 8080))
        await exchange(short, b"2")
        await short.aclose()
        await mesh.records(2)
        (proxy,) = [each for each in mesh.proxies.all() if each.context.uid == web.uid]
        assert proxy.statistics().outbound_tunnels == 2

        await mesh.proxies.remove(web.uid)

        await until(lambda: proxy.statistics().outbound_tunnels == 1)
        await exchange(live, b"3")
        await live.aclose()
        await mesh.records(4)


@in_mesh
async def test_enrolled_again_while_draining_serves_beside_the_old(mesh: LoopbackMesh) -> None:
    """Ten enrollments in a row must not wait for the slowest download."""
    web, api = await pair(mesh)
    async with application(api, 8080, echo):
        old = await mesh.connect(web, (api.addresses[0], 8080))
        await exchange(old, b"1")
        await mesh.proxies.remove(web.uid)
        await mesh.enroll(web)

        new = await mesh.connect(web, (api.addresses[0], 8080))
        await exchange(new, b"2")
        await exchange(old, b"3")
        await old.aclose()
        await mesh.records(2)
        await until(lambda: not mesh.proxies.is_draining(web.uid))
        assert mesh.drained == []
        assert mesh.proxies.running() == {web.uid, api.uid}
        assert web.identity not in mesh.svids.forgotten
        await new.aclose()
        await mesh.records(4)


@in_mesh
async def test_a_source_that_still_tunnels_to_a_drained_pod_goes_there_in_plaintext(
    mesh: LoopbackMesh,
) -> None:
    """The last request before the un-enrollment must not fail."""
    web, api = await pair(mesh)
    async with application(api, 8080, echo):
        first = await mesh.connect(web, (api.addresses[0], 8080))
        await exchange(first, b"1")
        await first.aclose()
        await mesh.records(2)
        await mesh.proxies.remove(api.uid)
        await until(lambda: api.uid in mesh.drained)

        # The decision to tunnel is taken, and then the mesh changes under it.
        late = await mesh.connect(web, (api.addresses[0], 8080))
        mesh.apply(Change(workloads=(dataclasses.replace(api, protocol=Protocol.TCP),)))
        await exchange(late, b"2")
        await late.aclose()
        await mesh.records(3)
    assert mesh.journal.records[-1].error == ""


@in_mesh
async def test_the_deadline_ends_what_would_never_end(mesh: LoopbackMesh) -> None:
    """SIGTERM: the platform kills us soon, and a cut connection deserves its record."""
    web, api = await pair(mesh)
    async with application(api, 8080, echo):
        stream = await mesh.connect(web, (api.addresses[0], 8080))
        await exchange(stream, b"1")

        await mesh.proxies.drain(0.05)

        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()
        records = await mesh.records(2)
    assert DRAINED in {record.error for record in records}
    assert mesh.proxies.all() == ()
    assert mesh.drained == []


@in_mesh
async def test_a_port_that_is_taken_leaves_nothing_half_done(mesh: LoopbackMesh) -> None:
    """A pod that runs its own proxy cannot be enrolled, and must not be half enrolled."""
    web = mesh.workload("web")
    with socket.create_server((web.addresses[0], 15008)):
        network = LoopbackNetwork(mesh.reactor, web.addresses[0], {})
        with pytest.raises(OSError, match="cannot listen on 15008 in the pod"):
            await mesh.proxies.add(info_of(web), network)
    assert network.closed
    assert mesh.proxies.running() == frozenset()
    assert web.identity in mesh.svids.forgotten
    await mesh.enroll(web)


@in_mesh
async def test_no_certificate_no_enrollment(mesh: LoopbackMesh) -> None:
    """A pod that cannot prove who it is would only refuse everybody."""
    web = mesh.workload("web")
    mesh.svids.refused.add(web.identity)
    network = LoopbackNetwork(mesh.reactor, web.addresses[0], {})

    with pytest.raises(Unavailable, match="is not of this node"):
        await mesh.proxies.add(info_of(web), network)

    assert network.closed


@in_mesh
async def test_an_unknown_workload_is_waited_for_and_then_refused(mesh: LoopbackMesh) -> None:
    """The agent may be faster than the control plane, but not for ever."""
    web = mesh.workload("web")
    mesh.apply(Change(removed_workloads=(web.uid,)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ztunnel.proxies.KNOWN_DEADLINE", 0.02)
        with pytest.raises(Unavailable, match="does not know"):
            await mesh.enroll(web)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mesh.enroll, web)
        await trio.testing.wait_all_tasks_blocked(0.01)
        mesh.apply(Change(workloads=(web,)))
    assert mesh.proxies.running() == {web.uid}


@in_mesh
async def test_an_identity_that_control_disagrees_with_is_refused(mesh: LoopbackMesh) -> None:
    """Somebody is wrong about who runs there: better nobody."""
    web, api = mesh.workload("web"), mesh.workload("api")
    network = LoopbackNetwork(mesh.reactor, web.addresses[0], {})

    with pytest.raises(Unavailable, match="the control plane knows"):
        await mesh.proxies.add(dataclasses.replace(info_of(web), identity=api.identity), network)
