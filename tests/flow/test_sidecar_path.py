"""Two sidecars and two applications: what one asks, the other answers, over mutual TLS."""

from __future__ import annotations

import hashlib
import json

import trio

from ambient.model.mesh import Change
from ambient.model.policy import Action, Match, Policy, Scope, StringMatch
from ambient.model.workload import Protocol
from tests.flow.l7_mesh import L7Mesh, client, in_l7_mesh
from tests.flow.loopback import application, echo, expect_reset, read_all, until


@in_l7_mesh
async def test_request_goes_from_sidecar_to_sidecar(mesh: L7Mesh) -> None:
    """The whole way: captured, routed by host, mutual TLS, policy, application; recorded at both ends."""
    service = mesh.http_service("api")
    web, api = mesh.workload("web", Protocol.ISTIO_MTLS), mesh.endpoint("api", service, Protocol.ISTIO_MTLS)
    mesh.sidecar(web)
    server_side = mesh.sidecar(api)
    mesh.app(api, "v1")

    async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
        for _ in range(3):
            status, _fields, body = await http.get("/reviews/0", "api")
            assert (status, json.loads(body)["pod"]) == (200, "api")

    assert server_side.handshakes == 1
    lines = await mesh.logged(6)
    outbound = [line for line in lines if 'direction="outbound"' in line]
    inbound = [line for line in lines if 'direction="inbound"' in line]
    assert len(outbound) == len(inbound) == 3
    assert 'dst.service="api.shop.svc.cluster.local"' in outbound[0]
    assert f'dst.identity="{api.identity}"' in outbound[0]
    assert f'src.identity="{web.identity}"' in inbound[0]
    text = mesh.metrics.exposition()
    assert 'reporter="source"' in text
    assert 'response_code="200"' in text
    assert 'connection_security_policy="mutual_tls"' in text
    assert "istio_request_duration_milliseconds_bucket" in text


@in_l7_mesh
async def test_host_decides_before_the_address(mesh: L7Mesh) -> None:
    """One connection, two services: each request goes where its host says."""
    first, second = mesh.http_service("first"), mesh.http_service("second")
    web = mesh.workload("web", Protocol.ISTIO_MTLS)
    one = mesh.endpoint("one", first, Protocol.TCP)
    two = mesh.endpoint("two", second, Protocol.TCP)
    mesh.sidecar(web)
    mesh.app(one)
    mesh.app(two)

    async with client(mesh.connect(web, (first.addresses[0], 80))) as http:
        pods = [
            json.loads((await http.get("/", host))[2])["pod"]
            for host in ("first", "second.shop:80", "nobody")
        ]

    assert pods == ["one", "two", "one"]


@in_l7_mesh
async def test_large_bodies_arrive_whole(mesh: L7Mesh) -> None:
    """Streamed both ways, through four hops of buffers."""
    service = mesh.http_service("api")
    web, api = mesh.workload("web", Protocol.ISTIO_MTLS), mesh.endpoint("api", service, Protocol.ISTIO_MTLS)
    mesh.sidecar(web)
    mesh.sidecar(api)
    mesh.app(api)
    size = 8 * 1024 * 1024

    async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
        _status, _fields, body = await http.get(f"/bytes/{size}", "api")
        status, _fields, _body = await http.request("POST", "/", "api", b"x" * size)

    assert hashlib.sha256(body).hexdigest() == hashlib.sha256(b"ambient " * (size // 8)).hexdigest()
    assert status == 200
    assert f"bytes_recv={size}" in (await mesh.logged(4))[-1]


@in_l7_mesh
async def test_policy_answers_before_the_application(mesh: L7Mesh) -> None:
    """A denied request gets 403, and the application no byte; a policy that changes takes hold at once."""
    service = mesh.http_service("api")
    web, api = mesh.workload("web", Protocol.ISTIO_MTLS), mesh.endpoint("api", service, Protocol.ISTIO_MTLS)
    mesh.sidecar(web)
    mesh.sidecar(api)
    app = mesh.app(api)
    deny = Policy(
        key="shop/no-web",
        namespace="shop",
        action=Action.DENY,
        scope=Scope.NAMESPACE,
        rules=(((Match(principals=(StringMatch.parse(web.identity.principal),)),),),),
    )

    async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
        assert (await http.get("/", "api"))[0] == 200
        mesh.policies(deny)
        status, _fields, body = await http.get("/", "api")
        assert (status, b"RBAC: access denied" in body) == (403, True)
        mesh.policies()
        assert (await http.get("/", "api"))[0] == 200
    assert len(app.connections) == 1


@in_l7_mesh
async def test_plaintext_is_taken_unless_policy_wants_identity(mesh: L7Mesh) -> None:
    """Permissive by default: a client without a sidecar is served; STRICT is a policy like any other."""
    service = mesh.http_service("api")
    api = mesh.endpoint("api", service, Protocol.ISTIO_MTLS)
    mesh.sidecar(api)
    mesh.app(api)
    stranger = mesh.workload("stranger", Protocol.TCP)
    strict = Policy(
        key="istio-system/istio_converted_static_strict",
        namespace="istio-system",
        action=Action.DENY,
        scope=Scope.GLOBAL,
        rules=(((Match(not_principals=(StringMatch.parse("*"),)),),),),
    )

    connecting = mesh.connect_plain(stranger.addresses[0], (api.addresses[0], 8080))
    async with client(connecting) as http:
        assert (await http.get("/", "api", x_forwarded_client_cert="URI=spiffe://a/ns/b/sa/c"))[0] == 200
        mesh.policies(strict)
        assert (await http.get("/", "api"))[0] == 403


@in_l7_mesh
async def test_bytes_go_from_sidecar_to_sidecar(mesh: L7Mesh) -> None:
    """What is not HTTP by its service's word is carried as it is, with half-close."""
    service = mesh.http_service("db", protocol="tcp")
    web, database = (
        mesh.workload("web", Protocol.ISTIO_MTLS),
        mesh.endpoint("db", service, Protocol.ISTIO_MTLS),
    )
    mesh.sidecar(web)
    mesh.sidecar(database)

    async with (
        application(database, 8080, echo),
        await mesh.connect(web, (service.addresses[0], 80)) as stream,
    ):
        await stream.send_all(b"\x00not http")
        await stream.send_eof()
        assert await read_all(stream) == b"\x00not http"

    lines = await mesh.logged(2)
    assert all("connection complete" in line for line in lines)


@in_l7_mesh
async def test_server_that_speaks_first_is_heard(mesh: L7Mesh) -> None:
    """A plaintext client of such a server is silent, and must not wait for ever to be told apart."""
    service = mesh.http_service("smtp", protocol="tcp")
    mail = mesh.endpoint("smtp", service, Protocol.ISTIO_MTLS)
    mesh.sidecar(mail)
    stranger = mesh.workload("stranger", Protocol.TCP)

    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 hello\r\n")

    async with (
        application(mail, 8080, greet),
        await mesh.connect_plain(stranger.addresses[0], (mail.addresses[0], 8080)) as stream,
    ):
        with trio.fail_after(2):
            assert await stream.receive_some() == b"220 hello\r\n"


@in_l7_mesh
async def test_denied_bytes_are_reset(mesh: L7Mesh) -> None:
    """There is no 403 for bytes; the application must not see one of them."""
    service = mesh.http_service("db", protocol="tcp")
    web, database = (
        mesh.workload("web", Protocol.ISTIO_MTLS),
        mesh.endpoint("db", service, Protocol.ISTIO_MTLS),
    )
    mesh.sidecar(web)
    mesh.sidecar(database)
    mesh.policies(
        Policy(key="shop/nobody", namespace="shop", action=Action.ALLOW, scope=Scope.NAMESPACE, rules=())
    )

    async with application(database, 8080, echo) as seen:
        stream = await mesh.connect(web, (service.addresses[0], 80))
        async with stream:
            await stream.send_all(b"hello")
            try:
                assert await stream.receive_some() == b""
            except trio.BrokenResourceError:
                pass
    assert seen == []


@in_l7_mesh
async def test_endpoint_that_dies_is_left_for_another(mesh: L7Mesh) -> None:
    """A dial that fails is tried again, on what the mesh knows by then; then the client is told."""
    service = mesh.http_service("api")
    web = mesh.workload("web", Protocol.ISTIO_MTLS)
    dead = mesh.endpoint("dead", service, Protocol.TCP)
    mesh.sidecar(web)

    async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
        status, _fields, body = await http.get("/", "api")
        assert (status, b"connect failed" in body) == (503, True)
        mesh.apply(Change(removed_workloads=(dead.uid,)))
        status, _fields, body = await http.get("/", "api")
        assert (status, b"no healthy upstream" in body) == (503, True)
        alive = mesh.endpoint("alive", service, Protocol.TCP)
        mesh.app(alive)
        assert (await http.get("/", "api"))[0] == 200


@in_l7_mesh
async def test_call_to_the_proxy_itself_is_refused(mesh: L7Mesh) -> None:
    """It would call itself until it has no descriptor left."""
    web = mesh.workload("web", Protocol.ISTIO_MTLS)
    mesh.sidecar(web)
    await expect_reset(mesh.connect(web, (web.addresses[0], 15001)))


@in_l7_mesh
async def test_upgrade_is_refused_in_words(mesh: L7Mesh) -> None:
    """A WebSocket client learns why; h2c is simply not taken up."""
    service = mesh.http_service("api")
    web, api = mesh.workload("web", Protocol.ISTIO_MTLS), mesh.endpoint("api", service, Protocol.TCP)
    mesh.sidecar(web)
    mesh.app(api)

    async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
        assert (await http.get("/", "api", connection="upgrade", upgrade="websocket"))[0] == 501
        assert (await http.get("/", "api", connection="upgrade", upgrade="h2c"))[0] == 200


@in_l7_mesh
async def test_drain_loses_no_request(mesh: L7Mesh) -> None:
    """Requests of a busy client are all answered; the last answer says that the connection ends."""
    service = mesh.http_service("api")
    web, api = mesh.workload("web", Protocol.ISTIO_MTLS), mesh.endpoint("api", service, Protocol.ISTIO_MTLS)
    sidecar = mesh.sidecar(web)
    mesh.sidecar(api)
    mesh.app(api)

    async with client(mesh.connect(web, (service.addresses[0], 80))) as http:
        assert (await http.get("/", "api"))[0] == 200
        sidecar.drain()
        status, fields, _body = await http.get("/", "api")
        assert (status, fields["connection"]) == (200, "close")
        assert await http.stream.receive_some() == b""
    await until(lambda: not sidecar.outbound.server.connections)
