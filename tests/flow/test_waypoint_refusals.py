"""A waypoint's :15008 says whom it turned away and why: one record each, as ztunnel's does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import trio

from ambient.engine import door as door_of_all
from ambient.wire import hbone_frames as f
from tests.flow.l7_mesh import L7Mesh, in_l7_mesh
from tests.flow.loopback import until
from tests.flow.test_waypoint_path import WAYPOINT
from tests.hostile.forge import Signer
from tests.hostile.peers import Door, Frame, Wire, client_context

GET = b"\x82\x84\x86\x41\x01a"  # RFC 7541: GET / http, :authority a.


async def waypoint_door(mesh: L7Mesh) -> Door:
    """As the peer of an enrolled pod's identity meets it."""
    web, way = mesh.workload("web"), mesh.workload("waypoint", waypoint_for=WAYPOINT)
    mesh.http_service("api", WAYPOINT)
    mesh.gateway(way)
    svid = await mesh.alpn_svids.get(web.identity)
    ca = Signer.of(mesh.alpn_svids.authority)
    return Door((way.addresses[0], 15008), web.addresses[0], svid, "", ca, "")


def get(door: Door) -> None:
    with door.http2() as wire:
        wire.send(f.frame(f.HEADERS, f.END_HEADERS | f.END_STREAM, 1, GET))
        assert wire.status() == 405


def bad_authority(door: Door) -> None:
    with door.http2() as wire:
        wire.connect("nonsense")
        assert wire.status() == 400


def foreign(door: Door) -> None:
    with door.http2() as wire:
        wire.connect("10.9.9.9:80")
        assert wire.status() == 400


def nobody(door: Door) -> None:
    door.refuses(client_context(None))


def no_tls(door: Door) -> None:
    with door.knock() as sock:
        sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
        sock.recv(64)


def no_http2(door: Door) -> None:
    with door.tls() as sock:
        sock.sendall(b"PRI * HTTP/3.0\r\n\r\nSM\r\n\r\n")
        while sock.recv(1024):
            pass


@pytest.mark.parametrize(
    ("attack", "reason", "known"),
    [
        (get, "http status 405: only CONNECT", True),
        (bad_authority, "bad authority", True),
        (foreign, "ip mismatch", True),
        (nobody, "tls failure", False),
        (no_tls, "tls failure", False),
        (no_http2, "http2 failure: PROTOCOL_ERROR: not HTTP/2", True),
    ],
    ids=["get", "bad-authority", "foreign-address", "no-certificate", "no-tls", "no-http2"],
)
def test_who_is_turned_away_is_recorded(attack: Callable[[Door], None], reason: str, known: bool) -> None:
    """Without a line, a client that is refused looks like one that never came."""

    @in_l7_mesh
    async def body(mesh: L7Mesh) -> None:
        door = await waypoint_door(mesh)

        await trio.to_thread.run_sync(attack, door)

        [line] = await mesh.logged(1)
        assert "\twarn\taccess\tconnection failed\t" in line
        assert f'error="{reason}' in line
        assert f"src.addr={door.source}:" in line
        assert f"dst.addr={door.pod}:15008" in line
        assert ('src.identity="spiffe://cluster.local/ns/shop/sa/web"' in line) is known

    body()


@in_l7_mesh
async def test_one_identity_holds_so_many_tunnels_and_no_more(mesh: L7Mesh) -> None:
    """The limit that operators set for ztunnel counts here, too."""
    mesh.reactor.limits = replace(mesh.reactor.limits, tunnels_per_identity=1)
    door = await waypoint_door(mesh)

    def second() -> None:
        with door.http2() as wire:
            wire.alive()
            door.refuses(client_context(door.svid))

    await trio.to_thread.run_sync(second)

    [line] = await mesh.logged(1)
    assert "over 1 connections of spiffe://" in line
    await until(lambda: not mesh.gateways[0]._door.known)


@in_l7_mesh
async def test_a_crowd_without_an_identity_is_refused(mesh: L7Mesh) -> None:
    """Handshakes that never end cost memory: there is a bound, and it gives way when they end."""
    door = await waypoint_door(mesh)
    before, door_of_all.MAX_HANDSHAKES = door_of_all.MAX_HANDSHAKES, 1
    try:

        def crowd() -> None:
            with door.knock(), door.knock() as late:
                assert late.recv(1) == b""

        await trio.to_thread.run_sync(crowd)
        lines = await mesh.logged(2)
    finally:
        door_of_all.MAX_HANDSHAKES = before
    assert sum("over 1 connections without an identity" in line for line in lines) == 1
    await until(lambda: not mesh.gateways[0]._door.unknown)


@in_l7_mesh
async def test_who_knocked_before_the_drain_is_told_of_it(mesh: L7Mesh) -> None:
    """A handshake may end after everybody else was told: without a GOAWAY its tunnel would hold that up."""
    door, gateway = await waypoint_door(mesh), mesh.gateways[0]
    with await trio.to_thread.run_sync(door.knock) as sock:
        await until(lambda: gateway._door.unknown == 1)
        gateway.drain()
        await trio.sleep(2 * door_of_all.GOAWAY_DELAY)

        def late() -> Frame:
            with client_context(door.svid).wrap_socket(sock) as tls, Wire(tls) as wire:
                wire.send(f.PREFACE, f.settings(()))
                return wire.until(lambda frame: frame[0] == f.GOAWAY)

        assert await trio.to_thread.run_sync(late)
