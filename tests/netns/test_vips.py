"""Virtual addresses in a real node: translated for both families and protocols, or refused at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from socket import socket

import pytest
import trio
import trio.testing

from ambient.engine import netlink
from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns
from ambient.model.mesh import Change, Mesh
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Workload
from ambient.redirect import backend
from ambient.redirect.vip_plan import vip_plan
from ambient.redirect.vips import VirtualAddresses
from ambient.wire import nft_encode
from ambient.wire.netlink import NETLINK_NETFILTER
from tests.lab import DEADLINE, Host, Lab, in_namespaces

VIP, VIP6 = "10.96.0.20", "fd00:10:96::14"
SERVICE = Service(
    name="web",
    namespace="shop",
    hostname="web.shop.svc.cluster.local",
    addresses=(VIP, VIP6),
    ports=(ServicePort(port=80, target_port=8080),),
)


def workload_of(pod: Host) -> Workload:
    return Workload(
        uid=pod.name,
        name=pod.name,
        namespace="shop",
        addresses=(pod.ip, pod.ip6),
        node="node-1",
        services={SERVICE.key: {80: 8080}},
    )


def mesh_of(*pods: Host) -> Mesh:
    mesh = Mesh()
    mesh.apply(Change(services=(SERVICE,), workloads=tuple(map(workload_of, pods)), snapshot=True))
    return mesh


@contextlib.contextmanager
def connected(client: Host, ip: str, listener: socket) -> Iterator[tuple[socket, socket]]:
    with client.connect(ip, 80) as near:
        far, _ = listener.accept()
        with far:
            far.settimeout(DEADLINE)
            yield near, far


@in_namespaces
def test_a_service_reaches_its_pod_and_both_see_who_they_should() -> None:
    """The client sees the virtual address, the pod sees the client."""
    lab = Lab()
    client, server = lab.pod("client"), lab.pod("server", node=2)
    backend.replace(lab.node().netns, vip_plan(mesh_of(server)))

    for vip, host, source in ((VIP, server.ip, client.ip), (VIP6, server.ip6, client.ip6)):
        with server.listen(8080, host) as listener, connected(client, vip, listener) as (near, far):
            assert near.getpeername()[0] == vip
            assert far.getpeername()[0] == source


@in_namespaces
def test_datagrams_are_translated_too() -> None:
    """DNS and the like; the answer comes from the address that was asked."""
    lab = Lab()
    client, server = lab.pod("client"), lab.pod("server")
    backend.replace(lab.node().netns, vip_plan(mesh_of(server)))

    for vip, host, source in ((VIP, server.ip, client.ip), (VIP6, server.ip6, client.ip6)):
        with client.udp(source) as asker, server.udp(host, 8080) as answerer:
            asker.sendto(b"question", (vip, 80))
            data, peer = answerer.recvfrom(16)
            answerer.sendto(data.upper(), peer)
            assert asker.recvfrom(16)[0] == b"QUESTION"
            assert peer[0] == source


@in_namespaces
def test_a_pod_reaches_itself_through_its_service() -> None:
    """Without the masquerade its answer would come from an address it never asked."""
    lab = Lab()
    server = lab.pod("server")
    backend.replace(lab.node().netns, vip_plan(mesh_of(server), "node-1"))

    for vip, host in ((VIP, server.ip), (VIP6, server.ip6)):
        with server.listen(8080, host) as listener, connected(server, vip, listener) as (near, far):
            near.sendall(b"myself")
            assert far.recv(16) == b"myself"


@in_namespaces
def test_the_node_itself_reaches_services() -> None:
    """What runs beside the pods asks by the same names."""
    lab = Lab()
    server = lab.pod("server")
    backend.replace(lab.node().netns, vip_plan(mesh_of(server)))

    with server.listen(8080) as listener:
        for vip in (VIP, VIP6):
            with connected(lab.node(), vip, listener) as (near, _):
                assert near.getpeername()[0] == vip


@pytest.mark.parametrize("target", ["no-endpoint", "no-service", "another-port"])
@in_namespaces
def test_what_nobody_serves_is_refused_at_once(target: str) -> None:
    """By both families, from pods and from the node; a time-out would be the other way to find out."""
    lab = Lab()
    client, server = lab.pod("client"), lab.pod("server")
    mesh = mesh_of() if target == "no-endpoint" else mesh_of(server)
    backend.replace(lab.node().netns, vip_plan(mesh))
    ips = ("10.96.77.77", "fd00:10:96::77") if target == "no-service" else (VIP, VIP6)

    started = time.monotonic()
    for host in (client, lab.node()):
        for ip in ips:
            with pytest.raises(ConnectionRefusedError):
                host.connect(ip, 81 if target == "another-port" else 80)
    assert time.monotonic() - started < 1


@in_namespaces
def test_connections_are_spread_over_all_pods() -> None:
    """Sixty of them over three: the chance that one gets none is below one in ten thousand million."""
    lab = Lab()
    client, *servers = (lab.pod(name) for name in ("client", "a", "b", "c"))
    backend.replace(lab.node().netns, vip_plan(mesh_of(*servers)))

    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(server.listen(8080)) for server in servers]
        for _ in range(60):
            client.connect(VIP, 80).close()
        for listener in listeners:
            listener.accept()[0].close()


@in_namespaces
def test_connections_survive_a_replacement_of_the_rules() -> None:
    """Any change of any service replaces them all."""
    lab = Lab()
    client, server, other = lab.pod("client"), lab.pod("server"), lab.pod("other")
    node = lab.node().netns
    backend.replace(node, vip_plan(mesh_of(server)))

    with server.listen(8080) as listener, connected(client, VIP, listener) as (near, far):
        for mesh in (mesh_of(server, other), mesh_of(other), mesh_of()):
            backend.replace(node, vip_plan(mesh))
            near.sendall(b"on")
            assert far.recv(16) == b"on"
            far.sendall(b"and on")
            assert near.recv(16) == b"and on"


@in_namespaces
def test_a_table_too_large_for_one_transaction_is_written_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user's kernel takes 400 KiB at once, and some fifty services are more."""
    monkeypatch.setattr(netlink, "SEND_BUFFER_BYTES", 4096)
    monkeypatch.setattr(backend, "SLICE_BYTES", 2048)
    lab = Lab()
    client, server, other = lab.pod("client"), lab.pod("server"), lab.pod("other")
    node = lab.node().netns
    for mesh in (mesh_of(server), mesh_of(server, other), mesh_of(server)):
        backend.replace(node, vip_plan(mesh))

    with server.listen(8080) as listener, connected(client, VIP, listener) as (near, _):
        assert near.getpeername()[0] == VIP
    with NetlinkSocket(node, NETLINK_NETFILTER) as nl:
        listed = len(nl.dump(nft_encode.dump_rules("ambient_services")))
    assert listed == sum(len(chain.rules) for chain in vip_plan(mesh_of(server)).chains)


@in_namespaces
async def test_a_change_that_changes_no_rule_writes_none() -> None:
    """A pod that becomes enrolled is new to proxies, not to the node."""
    lab = Lab()
    server = lab.pod("server")
    mesh = mesh_of(server)

    with in_netns(lab.node().netns):
        vips = VirtualAddresses(mesh, "node-1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vips.run)
            await until(lambda: vips.written == 1)
            mesh.apply(Change(workloads=(replace(workload_of(server), canonical_name="web"),)))
            vips.mesh_changed()
            await trio.testing.wait_all_tasks_blocked()
            mesh.apply(Change(removed_workloads=(server.name,)))
            vips.mesh_changed()
            await until(lambda: vips.written == 2)
            nursery.cancel_scope.cancel()
        with NetlinkSocket(None, NETLINK_NETFILTER) as nl:
            left = len(nl.dump(nft_encode.dump_rules("ambient_services")))

    assert left == sum(len(chain.rules) for chain in vip_plan(mesh).chains)


async def until(condition: object) -> None:
    assert callable(condition)
    with trio.fail_after(DEADLINE):
        while not condition():  # noqa: ASYNC110 (a transaction in a thread ends when it ends)
            await trio.sleep(0.005)
