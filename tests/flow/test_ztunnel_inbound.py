"""Port 15008 as a peer of another make sees it: every answer of interfaces.md, and every bad manner."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress

import pytest
import trio

from ambient.engine import door as door_of_all
from ambient.engine.channel import NullReceiver
from ambient.engine.dial import dial_socket
from ambient.engine.tls import TlsChannel, connect_tls
from ambient.engine.tunnel import TunnelConnection, TunnelRefused, TunnelStream
from ambient.model.mesh import Change
from ambient.model.record import AccessRecord, Direction, Flag
from ambient.model.workload import Workload
from tests.flow.loopback import LoopbackMesh, application, echo, expect_reset, fresh_ip, in_mesh, until
from ztunnel.inbound import InboundStream
from ztunnel.network import Address, Cancellable, OnDialled


class Peer:
    """A tunnel to a pod, made by hand."""

    def __init__(self, mesh: LoopbackMesh, source: Workload) -> None:
        self._mesh = mesh
        self._source = source
        self.tunnel: TunnelConnection | None = None
        self.failure: Exception | None = None

    async def connect(self, pod: Workload) -> TunnelConnection:
        await self._mesh.svids.get(self._source.identity)
        context = self._mesh.svids.context_nowait(self._source.identity, server=False)

        def shaken(result: TlsChannel | Exception) -> None:
            if isinstance(result, Exception):
                self.failure = result
            else:
                self.tunnel = TunnelConnection(self._mesh.reactor, result)

        def dialled(result: socket.socket | OSError) -> None:
            assert not isinstance(result, OSError)
            connect_tls(self._mesh.reactor, result, context, frozenset({pod.identity}), shaken)

        address = (pod.addresses[0], 15008)
        dial_socket(self._mesh.reactor, address, dialled, source=(self._source.addresses[0], 0))
        await until(lambda: self.tunnel or self.failure)
        if self.tunnel is None:
            assert self.failure is not None
            raise self.failure
        return self.tunnel

    async def ask(
        self, authority: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> TunnelStream | Exception:
        assert self.tunnel is not None
        answers: list[TunnelStream | Exception] = []
        self.tunnel.open_stream(authority, headers, answers.append)
        await until(lambda: answers)
        return answers[0]


async def met(mesh: LoopbackMesh) -> tuple[Peer, Workload, Workload]:
    """An enrolled pod, and a peer with a tunnel to it."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(api)
    peer = Peer(mesh, web)
    await peer.connect(api)
    return peer, web, api


async def last(mesh: LoopbackMesh, count: int = 1) -> AccessRecord:
    return (await mesh.records(count))[-1]


@pytest.mark.parametrize(
    ("authority", "status", "error"),
    [
        ("10.9.9.9:80", 400, "ip mismatch"),
        ("nonsense", 400, "bad authority"),
        ("unknown.shop.svc.cluster.local:80", 404, "no service for hostname"),
        ("{pod}:15001", 503, "recursive call"),
        ("{pod}:1", 503, "Connection refused"),
    ],
    ids=["foreign-address", "nonsense", "unknown-name", "own-port", "nobody-listens"],
)
def test_what_is_not_ours_is_refused_by_its_status(authority: str, status: int, error: str) -> None:
    """A peer must be able to tell its own mistake from our trouble."""

    @in_mesh
    async def body(mesh: LoopbackMesh) -> None:
        peer, _web, api = await met(mesh)
        answer = await peer.ask(authority.format(pod=api.addresses[0]))
        assert isinstance(answer, TunnelRefused)
        assert answer.status == status
        record = await last(mesh)
        assert error in record.error
        assert record.direction is Direction.INBOUND

    body()


@in_mesh
async def test_a_name_of_a_service_of_ours_is_served_on_its_target_port(mesh: LoopbackMesh) -> None:
    """The other form of an authority, which gateways use."""
    service = mesh.service("api", 80)
    web = mesh.workload("web")
    api = mesh.workload("api", services={service.key: {80: 8080}})
    await mesh.enroll(api)
    peer = Peer(mesh, web)
    await peer.connect(api)
    async with application(api, 8080, echo) as peers:
        stream = await peer.ask(f"{service.hostname}:80")
        assert isinstance(stream, TunnelStream)
        said = dict(stream.headers)["baggage"]
        assert said == "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=api"
        stream.start(NullReceiver())
        stream.close()
        record = await last(mesh)
    assert len(peers) == 1
    assert record.service == service.hostname


@in_mesh
async def test_what_a_peer_says_of_itself_is_not_believed(mesh: LoopbackMesh) -> None:
    """Headers describe: identity and address come from the certificate and the socket."""
    service = mesh.service("api", 80)
    peer, web, api = await met(mesh)
    async with application(api, 8080, echo) as peers:
        for host in ("made.up", service.hostname):
            stream = await peer.ask(
                f"{api.addresses[0]}:8080",
                (("forwarded", f'for="1.2.3.4:5";host={host}'), ("baggage", "k8s.pod.name=king")),
            )
            assert isinstance(stream, TunnelStream)
            stream.start(NullReceiver())
            stream.close()
        first, second = await mesh.records(2)
    assert {ip for ip, _ in peers} == {web.addresses[0]}
    assert {record.source.workload for record in (first, second)} == {"web"}
    assert {first.service, second.service} == {"", service.hostname}


@in_mesh
async def test_an_identity_at_another_address_has_no_workload_name(mesh: LoopbackMesh) -> None:
    """The certificate says who it is, the address would say somebody else."""
    web, api = mesh.workload("web"), mesh.workload("api")
    other = mesh.workload("other")
    await mesh.enroll(api)
    liar = Workload(uid="x", name="x", namespace="shop", service_account="web", addresses=other.addresses)
    peer = Peer(mesh, liar)
    await peer.connect(api)
    await peer.ask(f"{api.addresses[0]}:1")
    record = await last(mesh)
    assert record.source.identity == web.identity
    assert record.source.workload == ""


@in_mesh
async def test_plaintext_on_15008_is_closed_with_the_reason(mesh: LoopbackMesh) -> None:
    """Somebody speaks HTTP to the tunnel port: a mistake, or a probe."""
    api = mesh.workload("api")
    await mesh.enroll(api)
    stream = await mesh._captured(fresh_ip(), (api.addresses[0], 15008), (api.addresses[0], 15008))
    await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
    with suppress(trio.BrokenResourceError):
        while await stream.receive_some():
            pass
    await stream.aclose()
    record = await last(mesh)
    assert record.early
    assert record.flag is Flag.TLS_FAILURE
    assert "not_tls" in record.error


@in_mesh
async def test_without_a_certificate_nobody_is_let_in(mesh: LoopbackMesh) -> None:
    """It expired while the control plane was away."""
    api = mesh.workload("api")
    await mesh.enroll(api)
    mesh.svids._svids.clear()
    stream = await mesh._captured(fresh_ip(), (api.addresses[0], 15008), (api.addresses[0], 15008))
    assert await stream.receive_some() == b""
    await stream.aclose()
    record = await last(mesh)
    assert record.flag is Flag.IDENTITY_ERROR


@in_mesh
async def test_without_a_certificate_nothing_goes_out_by_tunnel(mesh: LoopbackMesh) -> None:
    """And never in plaintext instead."""
    web, api = mesh.workload("web"), mesh.workload("api")
    await mesh.enroll(web)
    mesh.svids._svids.clear()
    with socket.create_server((api.addresses[0], 15008)):
        await expect_reset(mesh.connect(web, (api.addresses[0], 8080)))
    record = await last(mesh)
    assert record.flag is Flag.IDENTITY_ERROR


@in_mesh
async def test_unproven_connections_are_bounded(mesh: LoopbackMesh) -> None:
    """Anybody can open sockets; they must not be able to fill us."""
    api = mesh.workload("api")
    await mesh.enroll(api)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(door_of_all, "MAX_HANDSHAKES", 3)
        door = (api.addresses[0], 15008)
        silent = [await mesh._captured(fresh_ip(), door, door) for _ in range(3)]
        await until(lambda: mesh.proxies.all()[0].statistics().connections == 3)
        fourth = await mesh._captured(fresh_ip(), door, door)
        assert await fourth.receive_some() == b""
        for stream in (*silent, fourth):
            await stream.aclose()
        await until(lambda: mesh.proxies.all()[0].statistics().connections == 0)


@in_mesh
async def test_a_workload_that_control_forgot_serves_nobody(mesh: LoopbackMesh) -> None:
    """What is unknown is refused, in both directions."""
    peer, _web, api = await met(mesh)
    mesh.apply(Change(removed_workloads=(api.uid,)))
    answer = await peer.ask(f"{api.addresses[0]}:8080")
    assert isinstance(answer, TunnelRefused)
    assert answer.status == 503
    for door in (15001, 15006):
        await expect_reset(mesh._captured(fresh_ip(), (api.addresses[0], door), (api.addresses[0], 8080)))
    records = await mesh.records(3)
    assert {record.early for record in records} == {True}


class StuckDial:
    """An application that never answers; ``fail`` is its deadline."""

    def __init__(self) -> None:
        self.on_done: OnDialled | None = None
        self.cancelled = False

    def __call__(self, address: Address, on_done: OnDialled, **how: object) -> Cancellable:
        self.on_done = on_done
        return self

    def cancel(self) -> None:
        self.cancelled = True


async def stuck(mesh: LoopbackMesh) -> tuple[Peer, Workload, StuckDial]:
    """A tunnel to a pod whose application never answers."""
    web, api = mesh.workload("web"), mesh.workload("api")
    network = await mesh.enroll(api)
    dial = StuckDial()
    network.dial = dial  # type: ignore[method-assign]
    peer = Peer(mesh, web)
    await peer.connect(api)
    return peer, api, dial


@in_mesh
async def test_an_application_that_does_not_answer_is_504(mesh: LoopbackMesh) -> None:
    """interfaces.md: 503 refused, 504 timed out."""
    peer, api, dial = await stuck(mesh)
    answers: list[object] = []
    assert peer.tunnel is not None
    peer.tunnel.open_stream(f"{api.addresses[0]}:8080", (), answers.append)
    await until(lambda: dial.on_done)
    assert dial.on_done is not None
    dial.on_done(TimeoutError(110, "late"))
    await until(lambda: answers)
    assert isinstance(answers[0], TunnelRefused)
    assert answers[0].status == 504
    assert (await last(mesh)).error == "connection timed out"


@pytest.mark.parametrize("how", ["policy", "drain", "peer"])
def test_a_request_under_way_is_given_up(how: str) -> None:
    """Before there is a relay there is a dial: it must end, and leave its record."""

    @in_mesh
    async def body(mesh: LoopbackMesh) -> None:
        peer, api, dial = await stuck(mesh)
        answers: list[object] = []
        assert peer.tunnel is not None
        peer.tunnel.open_stream(f"{api.addresses[0]}:8080", (), answers.append)
        await until(lambda: dial.on_done)
        (connection,) = mesh.proxies.all()[0].context.open.all()
        assert isinstance(connection, InboundStream)
        ends: dict[str, Callable[[], object]] = {
            "policy": lambda: connection.close("connection closed due to policy change", Flag.DENY),
            "drain": lambda: connection.close("connection closed due to connection drain"),
            "peer": peer.tunnel.close,
        }
        ends[how]()
        await until(lambda: answers)
        record = await last(mesh)
        assert dial.cancelled
        assert record.error
        connection.close("twice")
        connection.finish("twice")
        assert len(mesh.journal.records) == 1
        if how != "peer":
            assert isinstance(answers[0], TunnelRefused)
            assert answers[0].status == (403 if how == "policy" else 503)

    body()


@pytest.mark.parametrize("door", [15001, 15006])
def test_a_captured_connection_under_way_is_given_up(door: int) -> None:
    """The same for plaintext, both ways."""

    @in_mesh
    async def body(mesh: LoopbackMesh) -> None:
        api = mesh.workload("api")
        network = await mesh.enroll(api)
        dial = StuckDial()
        network.dial = dial  # type: ignore[method-assign]
        target = (fresh_ip() if door == 15001 else api.addresses[0], 8080)
        stream = await mesh._captured(fresh_ip(), (api.addresses[0], door), target)
        await until(lambda: dial.on_done)
        assert mesh.proxies.dump()
        mesh.proxies.all()[0].abort("over")
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        await stream.aclose()
        assert dial.cancelled
        assert (await last(mesh)).error == "over"

    body()


@pytest.mark.parametrize("door", [15001, 15006])
def test_a_plaintext_dial_that_fails_is_recorded(door: int) -> None:
    """The application sees a reset, the operator the reason."""

    @in_mesh
    async def body(mesh: LoopbackMesh) -> None:
        api = mesh.workload("api")
        await mesh.enroll(api)
        target = (fresh_ip() if door == 15001 else api.addresses[0], 8080)
        await expect_reset(mesh._captured(fresh_ip(), (api.addresses[0], door), target))
        assert (await last(mesh)).error == "connection failed: Connection refused"

    body()
