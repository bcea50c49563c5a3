"""Outbound, HBONE, inbound, application: the way of a byte on loopback, with real TLS."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import re
from collections import Counter

import pytest
import trio
import trio.testing

from ambient.model.mesh import Change
from ambient.model.policy import Action, Match, MatchKind, Policy, Scope, StringMatch
from ambient.model.record import AccessRecord, Direction, Flag, format_json, format_text
from ambient.model.workload import Protocol
from tests.flow.loopback import (
    LoopbackMesh,
    application,
    echo,
    expect_reset,
    fresh_ip,
    in_mesh,
    read_all,
    until,
)
from ztunnel.exposition import exposition

STRICT = Policy(
    key="istio-system/istio_converted_static_strict",
    namespace="istio-system",
    action=Action.DENY,
    scope=Scope.GLOBAL,
    rules=(((Match(not_principals=(StringMatch(MatchKind.PRESENCE),)),),),),
)


def deny_account(name: str) -> Policy:
    return Policy(
        key=f"shop/no-{name}",
        namespace="shop",
        action=Action.DENY,
        scope=Scope.NAMESPACE,
        rules=(((Match(principals=(StringMatch(MatchKind.SUFFIX, f"/sa/{name}"),)),),),),
    )


@in_mesh
async def test_a_request_crosses_two_proxies(mesh: LoopbackMesh) -> None:
    """The thin path: if this does not hold, nothing does."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    async with application(api, 8080, echo) as peers:
        stream = await mesh.connect(web, (api.addresses[0], 8080))
        await stream.send_all(b"hello")
        await stream.send_eof()

        assert await read_all(stream) == b"hello"

        await stream.aclose()
        inbound, outbound = await mesh.records(2)
    assert peers[0][0] == web.addresses[0]
    assert (inbound.direction, outbound.direction) == (Direction.INBOUND, Direction.OUTBOUND)
    for record in (inbound, outbound):
        assert record.error == ""
        assert record.bytes_sent == record.bytes_received == 5
        assert record.source.identity == web.identity
        assert record.destination.identity == api.identity
        assert record.source.workload == "web"
        assert record.destination.workload == "api"
        assert record.destination.address == f"{api.addresses[0]}:15008"
        assert record.hbone_address == f"{api.addresses[0]}:8080"
        assert not record.early


@in_mesh
async def test_the_usual_line_is_the_records_line(mesh: LoopbackMesh) -> None:
    """It is put together from what other connections of its kind said before."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    lines = mesh.journal.lines
    async with application(api, 8080, echo):
        for count, mesh.journal.terse in ((2, False), (4, True), (6, True)):
            stream = await mesh.connect(web, (api.addresses[0], 8080))
            await stream.send_all(b"hello")
            await stream.send_eof()
            assert await read_all(stream) == b"hello"
            await stream.aclose()
            await until(lambda count=count: len(lines) >= count)  # type: ignore[misc]

    assert len(mesh.journal.records) == 2
    clean = [
        re.sub(r'^[-0-9T:.]+Z|(?<=src.addr=127)[0-9.:]+|duration="[0-9]+ms"', "", line) for line in lines
    ]
    assert len(clean) == 6
    assert Counter(clean) == Counter(dict.fromkeys(clean[:2], 3))


@in_mesh
async def test_a_service_is_load_balanced_and_named(mesh: LoopbackMesh) -> None:
    """The record of both ends names the service that the client meant."""
    service = mesh.service("api", 80)
    web = mesh.workload("web")
    api = mesh.workload("api", services={service.key: {80: 8080}})
    await mesh.enroll(web)
    await mesh.enroll(api)
    async with application(api, 8080, echo):
        stream = await mesh.connect(web, (service.addresses[0], 80))
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        await stream.aclose()
        records = await mesh.records(2)
    assert [record.service for record in records] == [service.hostname] * 2
    assert 'destination_service="api.shop.svc.cluster.local"' in mesh.journal.metrics.exposition()


@in_mesh
async def test_many_streams_share_one_handshake(mesh: LoopbackMesh) -> None:
    """A handshake costs more than all the rest of a short request."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    async with application(api, 8080, echo):
        streams = [await mesh.connect(web, (api.addresses[0], 8080)) for _ in range(20)]
        for number, stream in enumerate(streams):
            await stream.send_all(b"%d" % number)
        for number, stream in enumerate(streams):
            assert await stream.receive_some() == b"%d" % number
            await stream.aclose()
        await mesh.records(40)
    assert sum(proxy.statistics().inbound_handshakes for proxy in mesh.proxies.all()) == 1


@in_mesh
async def test_bulk_arrives_byte_for_byte_both_ways(mesh: LoopbackMesh) -> None:
    """Windows, partial frames and back-pressure, all at once."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    block = os.urandom(1 << 20)
    count, sent, received = 16, hashlib.sha256(), hashlib.sha256()
    async with application(api, 8080, echo):
        stream = await mesh.connect(web, (api.addresses[0], 8080))

        async def send() -> None:
            for _ in range(count):
                sent.update(block)
                await stream.send_all(block)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            async for data in stream:
                received.update(data)
        await stream.aclose()
        records = await mesh.records(2)
    assert received.digest() == sent.digest()
    assert {record.bytes_sent for record in records} == {count << 20}


@in_mesh
async def test_the_server_may_speak_first(mesh: LoopbackMesh) -> None:
    """SMTP, MySQL: the client waits for a greeting before it sends a byte."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)

    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 hello\r\n")
        assert await stream.receive_some() == b"QUIT\r\n"

    async with application(api, 25, greet) if os.geteuid() == 0 else application(api, 2525, greet):
        port = 25 if os.geteuid() == 0 else 2525
        stream = await mesh.connect(web, (api.addresses[0], port))
        assert await stream.receive_some() == b"220 hello\r\n"
        await stream.send_all(b"QUIT\r\n")
        assert await stream.receive_some() == b""
        await stream.aclose()
        await mesh.records(2)


@in_mesh
async def test_half_close_keeps_the_other_direction_open(mesh: LoopbackMesh) -> None:
    """The server may answer long after the client has finished."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    asked = trio.Event()

    async def answer_late(stream: trio.SocketStream) -> None:
        request = await read_all(stream)
        asked.set()
        await trio.sleep(0.05)
        await stream.send_all(b"re: " + request)

    async with application(api, 8080, answer_late):
        stream = await mesh.connect(web, (api.addresses[0], 8080))
        await stream.send_all(b"ping")
        await stream.send_eof()
        await asked.wait()
        assert await read_all(stream) == b"re: ping"
        await stream.aclose()
        await mesh.records(2)


@in_mesh
async def test_a_connection_without_a_byte_is_a_connection(mesh: LoopbackMesh) -> None:
    """Health checks do this; the application must see it, and a record must be written."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    async with application(api, 8080, echo) as peers:
        stream = await mesh.connect(web, (api.addresses[0], 8080))
        await stream.aclose()
        records = await mesh.records(2)
    assert len(peers) == 1
    assert [record.bytes_sent for record in records] == [0, 0]


@in_mesh
async def test_outside_the_mesh_goes_in_plaintext(mesh: LoopbackMesh) -> None:
    """What is not in the mesh is reached as if we were not there."""
    web = mesh.workload("web")
    outside = mesh.workload("outside", Protocol.TCP)
    await mesh.enroll(web)
    async with application(outside, 8080, echo):
        stream = await mesh.connect(web, (outside.addresses[0], 8080))
        await stream.send_all(b"plain")
        assert await stream.receive_some() == b"plain"
        await stream.aclose()
        (record,) = await mesh.records(1)
    assert record.hbone_address == ""
    assert record.source.identity is record.destination.identity is None
    assert record.destination.workload == "outside"


@in_mesh
async def test_a_plaintext_client_reaches_a_permissive_pod(mesh: LoopbackMesh) -> None:
    """Enrollment must not cut off those who are not enrolled yet."""
    api, stranger = mesh.workload("api"), fresh_ip()
    await mesh.enroll(api)
    async with application(api, 8080, echo) as peers:
        stream = await mesh.connect_plain(stranger, (api.addresses[0], 8080))
        await stream.send_all(b"hi")
        assert await stream.receive_some() == b"hi"
        await stream.aclose()
        (record,) = await mesh.records(1)
    assert peers[0][0] == stranger
    assert record.direction is Direction.INBOUND
    assert record.source.identity is None
    assert record.destination.workload == "api"


@in_mesh
async def test_strict_denies_plaintext_before_the_application_sees_it(mesh: LoopbackMesh) -> None:
    """The reason to switch STRICT on."""
    api = mesh.workload("api")
    mesh.policies(STRICT)
    await mesh.enroll(api)
    async with application(api, 8080, echo) as peers:
        await expect_reset(mesh.connect_plain(fresh_ip(), (api.addresses[0], 8080)))
        (record,) = await mesh.records(1)
        assert peers == []
    assert record.flag is Flag.DENY
    assert record.error == f"explicitly denied by: {STRICT.key}"


@in_mesh
async def test_a_denied_identity_gets_403_and_the_application_nothing(mesh: LoopbackMesh) -> None:
    """Policy is asked before the application is dialled."""
    web, api = mesh.workload("web"), mesh.workload("api")
    mesh.policies(deny_account("web"))
    await mesh.enroll(web)
    await mesh.enroll(api)
    async with application(api, 8080, echo) as peers:
        await expect_reset(mesh.connect(web, (api.addresses[0], 8080)))
        inbound, outbound = await mesh.records(2)
        assert peers == []
    assert inbound.error == "explicitly denied by: shop/no-web"
    assert outbound.error == "http status: 403"
    assert {inbound.flag, outbound.flag} == {Flag.DENY}


@in_mesh
async def test_a_new_policy_closes_what_it_denies_and_nothing_else(mesh: LoopbackMesh) -> None:
    """A policy must not have to wait for long connections to end."""
    web, other, api = mesh.workload("web"), mesh.workload("other"), mesh.workload("api")
    for workload in (web, other, api):
        await mesh.enroll(workload)
    async with application(api, 8080, echo):
        denied = await mesh.connect(web, (api.addresses[0], 8080))
        kept = await mesh.connect(other, (api.addresses[0], 8080))
        for stream in (denied, kept):
            await stream.send_all(b"1")
            assert await stream.receive_some() == b"1"

        mesh.policies(deny_account("web"))

        with pytest.raises(trio.BrokenResourceError):
            assert await denied.receive_some() == b"never"
        await kept.send_all(b"2")
        assert await kept.receive_some() == b"2"
        inbound = [r for r in await mesh.records(1) if r.direction is Direction.INBOUND]
        await denied.aclose()
        await kept.aclose()
        await mesh.records(4)
    assert [(record.error, record.flag) for record in inbound] == [
        ("connection closed due to policy change", Flag.DENY)
    ]


@in_mesh
async def test_a_port_nobody_listens_on_is_refused_at_both_ends(mesh: LoopbackMesh) -> None:
    """503, not a 200 and then silence."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    await expect_reset(mesh.connect(web, (api.addresses[0], 8081)))
    inbound, outbound = await mesh.records(2)
    assert inbound.error == "connection failed: Connection refused"
    assert outbound.error == "http status: 503"


@in_mesh
async def test_a_call_to_ourselves_is_refused(mesh: LoopbackMesh) -> None:
    """It would go round until the descriptors run out."""
    web = mesh.workload("web")
    await mesh.enroll(web)
    targets = [(door, port) for door in (15001, 15006) for port in (15001, 15006, 15008, 15053)]
    for door, port in targets:
        await expect_reset(mesh._captured(fresh_ip(), (web.addresses[0], door), (web.addresses[0], port)))
    records = await mesh.records(len(targets))
    assert [record.error for record in records] == ["attempted recursive call to ourselves"] * len(targets)


@in_mesh
async def test_another_identity_at_the_address_is_refused(mesh: LoopbackMesh) -> None:
    """The address was reused, or somebody is lying: both look the same."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    mesh.apply(Change(workloads=(dataclasses.replace(api, service_account="somebody"),)))
    await expect_reset(mesh.connect(web, (api.addresses[0], 8080)))
    await until(lambda: any(r.direction is Direction.OUTBOUND for r in mesh.journal.records))
    (outbound,) = [r for r in mesh.journal.records if r.direction is Direction.OUTBOUND]
    assert outbound.flag is Flag.IDENTITY_ERROR


@in_mesh
async def test_renewal_drops_no_connection(mesh: LoopbackMesh) -> None:
    """Certificates live for a day, connections for weeks."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    async with application(api, 8080, echo):
        stream = await mesh.connect(web, (api.addresses[0], 8080))
        await stream.send_all(b"1")
        assert await stream.receive_some() == b"1"
        for workload in (web, api):
            mesh.svids.renew(workload.identity)
        await stream.send_all(b"2")
        assert await stream.receive_some() == b"2"
        await stream.aclose()
        await mesh.records(2)


@in_mesh
async def test_bytes_are_counted_while_they_flow_and_only_once(mesh: LoopbackMesh) -> None:
    """A download of a day must not be one jump in a graph; and the end must not count it again."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)

    def counted(name: str) -> list[int]:
        lines = "".join(exposition(mesh.journal.metrics, mesh.proxies)).splitlines()
        return [
            int(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(f"istio_tcp_{name}_bytes_total{{")
        ]

    async def answer(stream: trio.SocketStream) -> None:
        async for _data in stream:
            await stream.send_all(b"12345")

    async with application(api, 8080, answer):
        stream = await mesh.connect(web, (api.addresses[0], 8080))
        for times in (1, 2):
            await stream.send_all(b"ask")
            assert await stream.receive_some() == b"12345"
            assert counted("received") == [3 * times] * 2
            assert counted("sent") == [5 * times] * 2
        await stream.aclose()
        await mesh.records(2)
    assert counted("received") == [6, 6]
    assert counted("sent") == [10, 10]


@in_mesh
async def test_the_records_of_both_ends_name_one_trace(mesh: LoopbackMesh) -> None:
    """In JSON: whoever has one finds the other. Two connections are two traces."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    await mesh.enroll(api)
    mesh.journal.json = True
    mesh.journal.levels.access = logging.DEBUG
    begun: list[AccessRecord] = []
    mesh.journal.began = begun.append  # type: ignore[method-assign]
    async with application(api, 8080, echo):
        for _ in range(2):
            stream = await mesh.connect(web, (api.addresses[0], 8080))
            await stream.send_all(b"x")
            await stream.send_eof()
            assert await read_all(stream) == b"x"
            await stream.aclose()
        records = await mesh.records(4)

    traces = Counter(record.trace for record in records)
    assert sorted(traces.values()) == [2, 2]
    assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in traces)
    assert json.loads(format_json(records[0]))["trace_id"] in traces
    assert "trace" not in format_text(records[0])
    assert [each.message for each in begun] == ["connection opened"] * 4
