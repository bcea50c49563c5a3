"""A waypoint between two ztunnels: every request is read, routed, counted, and none is lost."""

from __future__ import annotations

import json

import trio

from ambient.model.mesh import Change
from ambient.model.service import Service
from ambient.model.workload import Protocol, Workload
from tests.flow.l7_mesh import L7Mesh, client, in_l7_mesh
from tests.flow.loopback import application, echo, read_all, until
from waypoint.gateway import Gateway

WAYPOINT = "shop/waypoint.shop.svc.cluster.local"


async def with_waypoint(mesh: L7Mesh, protocol: str = "http") -> tuple[Workload, Workload, Service, Gateway]:
    """(client, endpoint, service, waypoint) of a namespace with all of ambient mode."""
    service = mesh.http_service("api", WAYPOINT, protocol)
    web, api = mesh.workload("web"), mesh.endpoint("api", service, Protocol.HBONE)
    way = mesh.workload("waypoint", waypoint_for=WAYPOINT, services={WAYPOINT: {15008: 15008}})
    await mesh.enroll(web)
    await mesh.enroll(api)
    return web, api, service, mesh.gateway(way)


@in_l7_mesh
async def test_request_passes_the_waypoint(mesh: L7Mesh) -> None:
    """ztunnel, waypoint, ztunnel, application; the destination sees the waypoint's identity."""
    web, api, service, _gateway = await with_waypoint(mesh)
    mesh.app(api, "v1")

    async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
        for _ in range(3):
            status, _fields, body = await http.get("/", "api.shop")
            assert (status, json.loads(body)["pod"]) == (200, "api")

    lines = await mesh.logged(3)
    assert all(f'src.identity="{web.identity}"' in line for line in lines)
    assert all('src.workload="web"' in line and 'dst.workload="api"' in line for line in lines)
    assert 'reporter="waypoint"' in mesh.metrics.exposition()


@in_l7_mesh
async def test_requests_of_one_connection_are_balanced(mesh: L7Mesh) -> None:
    """What a waypoint is for: endpoints are chosen per request, not per connection."""
    web, api, service, gateway = await with_waypoint(mesh)
    other = mesh.endpoint("other", service, Protocol.TCP)
    mesh.app(api)
    mesh.app(other)
    chances = iter([0.0, 0.9, 0.0, 0.9])
    object.__setattr__(gateway._context, "chance", lambda: next(chances))

    async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
        pods = [json.loads((await http.get("/", "api"))[2])["pod"] for _ in range(4)]

    assert pods == ["api", "other", "api", "other"]


@in_l7_mesh
async def test_bytes_pass_the_waypoint(mesh: L7Mesh) -> None:
    """A TCP port of a service with a waypoint is carried, and answered only when it was reached."""
    web, api, service, _gateway = await with_waypoint(mesh, "tcp")
    mesh.journal.json = True

    async with application(api, 8080, echo), await mesh.connect(web, (service.addresses[0], 80)) as stream:
        await stream.send_all(b"\x00bytes")
        await stream.send_eof()
        assert await read_all(stream) == b"\x00bytes"
        records = await mesh.records(2)

    # The waypoint goes on with the trace that the source began.
    assert len({record.trace for record in records}) == 1
    assert len(records[0].trace) == 32


@in_l7_mesh
async def test_what_is_not_served_is_refused(mesh: L7Mesh) -> None:
    """A waypoint is no open relay: not for other services, not for itself, not for unreachable ports."""
    web, api, service, gateway = await with_waypoint(mesh, "tcp")
    mesh.http_service("foreign")
    stream = await mesh.connect(web, (service.addresses[0], 80))
    async with stream:
        try:
            assert await stream.receive_some() == b""
        except trio.BrokenResourceError:
            pass
    assert gateway.handshakes == 1
    assert api.uid in {each.uid for each in mesh.mesh.workloads()}


@in_l7_mesh
async def test_unknown_host_goes_where_the_connection_went(mesh: L7Mesh) -> None:
    """The authority of the CONNECT is proven by routing; a host header is only a wish."""
    web, api, service, _gateway = await with_waypoint(mesh)
    mesh.app(api)

    async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
        status, _fields, body = await http.get("/", "example.com")

    assert (status, json.loads(body)["pod"]) == (200, "api")


@in_l7_mesh
async def test_waypoint_that_goes_away_loses_no_request(mesh: L7Mesh) -> None:
    """Delete: control points services elsewhere, the waypoint drains; whoever keeps asking is answered."""
    web, api, service, gateway = await with_waypoint(mesh)
    mesh.app(api)
    answers: list[int] = []
    stop = False

    async def ask() -> None:
        while not stop:
            async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
                for _ in range(20):
                    status, fields, _body = await http.get("/", "api")
                    answers.append(status)
                    if fields.get("connection") == "close":
                        break

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(ask)
        await until(lambda: len(answers) > 20)
        without = Service(
            name=service.name,
            namespace=service.namespace,
            hostname=service.hostname,
            addresses=service.addresses,
            ports=service.ports,
        )
        mesh.apply(Change(services=(without,)))
        before = len(answers)
        await until(lambda: len(answers) > before + 20)
        way = gateway.served.me
        assert way is not None
        gateway.drain()
        mesh.apply(Change(removed_workloads=(way.uid,)))
        before = len(answers)
        await until(lambda: not gateway.http.server.connections)
        await until(lambda: len(answers) > before + 20)
        stop = True

    assert set(answers) == {200}
