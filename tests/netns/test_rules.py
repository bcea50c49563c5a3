"""The rule sets in a real kernel: the same by netlink and by nft, and no connection is lost by them."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns, listen_in, original_destination, socket_in
from ambient.model.exclusions import Exclusions
from ambient.redirect import backend, text
from ambient.redirect.backend import Standing
from ambient.redirect.plan import (
    INBOUND_PORT,
    OUTBOUND_PORT,
    PROXY_MARK,
    SIDECAR_TABLE,
    Capture,
    capture_plan,
    closed_plan,
    drain_plan,
)
from ambient.redirect.vip_plan import vip_plan
from ambient.wire import netlink_route
from ambient.wire.nft import Chain, Goto, Table
from tests.lab import DEADLINE, Host, Lab, in_namespaces, make_netns
from tests.netns.test_vips import mesh_of

CAPTURE = Capture()
EXCLUDING = Capture(
    exclusions=Exclusions(
        outbound_ports=(81,),
        outbound_ranges=("192.0.2.0/24", "2001:db8::/32"),
        inbound_ports=(90,),
        inbound_ranges=("198.51.100.7/32",),
    )
)


def nft(netns: int, *arguments: str, rules: str = "") -> str:
    """What the nft binary says in a namespace."""
    with in_netns(netns):
        done = subprocess.run(
            ["nft", *arguments], input=rules, capture_output=True, text=True, check=False, timeout=DEADLINE
        )
    assert done.returncode == 0, done.stderr
    return done.stdout


def vips() -> Table:
    pods = (Host("a", 0, "10.244.1.2", "fd00:10:244:1::2"), Host("b", 0, "10.244.1.3", "fd00:10:244:1::3"))
    return vip_plan(mesh_of(*pods))


@pytest.mark.nft
@pytest.mark.parametrize(
    "plan",
    [
        lambda: capture_plan(CAPTURE),
        lambda: capture_plan(Capture(dns=True)),
        lambda: capture_plan(Capture(table=SIDECAR_TABLE)),
        lambda: capture_plan(EXCLUDING),
        lambda: closed_plan(EXCLUDING),
        drain_plan,
        vips,
    ],
    ids=["capture", "with-dns", "sidecar", "exclusions", "closed", "drain", "virtual-addresses"],
)
@in_namespaces
def test_nft_reads_the_text_and_lists_the_same_rules(plan: Callable[[], Table]) -> None:
    """Two spellings of one rule set, and a program that is not ours to compare them."""
    ours, theirs = make_netns({}), make_netns({})

    backend.put(ours, plan())
    nft(theirs, "-f", "-", rules=text.format_replacement(plan()))

    def listed(netns: int) -> list[str]:
        # Chains that nothing in the kernel orders may come in either order.
        rules = nft(netns, "list", "ruleset").replace(f"{text.TRANSPORT_GUARD} ", "")
        return sorted(rules.split("\n\tchain "))

    assert plan().chains[0].name in nft(ours, "list", "ruleset")
    assert [each.rstrip("}\n") for each in listed(ours)] == [each.rstrip("}\n") for each in listed(theirs)]


@pytest.mark.nft
@in_namespaces
def test_refilling_by_text_is_refilling_by_netlink() -> None:
    """The second way into a standing table."""
    netns = make_netns({})
    backend.put(netns, capture_plan(CAPTURE))

    nft(netns, "-f", "-", rules=text.format_refill(drain_plan()))
    assert backend.standing(netns) is Standing.DRAINING

    nft(netns, "-f", "-", rules=text.format_deletion("ambient"))
    assert backend.standing(netns) is Standing.NONE


def ip_state(netns: int) -> tuple[object, ...]:
    with NetlinkSocket(netns) as nl:
        return tuple(
            set(each)
            for family in (2, 10)
            for each in (nl.rules(family), (r for r in nl.routes(family) if r.table == 100))
        )


@in_namespaces
def test_capture_drain_and_removal_leave_what_they_say() -> None:
    """Each twice: doing it again changes nothing, and the end is the beginning."""
    netns = make_netns({})
    before = ip_state(netns)

    for _ in range(2):
        backend.install(netns, CAPTURE)
        assert backend.standing(netns) is Standing.CAPTURED
    assert ip_state(netns) != before
    for _ in range(2):
        backend.drain(netns)
        assert backend.standing(netns) is Standing.DRAINING
    backend.install(netns, Capture(dns=True))
    assert backend.standing(netns) is Standing.CAPTURED
    for _ in range(2):
        backend.remove(netns)
        assert backend.standing(netns) is Standing.NONE
        assert ip_state(netns) == before
    backend.drain(netns)
    assert backend.standing(netns) is Standing.NONE


@in_namespaces
def test_foreign_rules_in_our_table_are_noticed_and_mended() -> None:
    """Somebody flushed a chain: the pod would slip out of the mesh unseen."""
    netns = make_netns({})
    backend.install(netns, CAPTURE)
    damaged = capture_plan(CAPTURE)
    backend.put(netns, Table(damaged.name, (*damaged.chains[:2], drain_plan().chains[2])))

    assert backend.standing(netns) is Standing.DAMAGED
    backend.install(netns, CAPTURE)
    assert backend.standing(netns) is Standing.CAPTURED


@in_namespaces
def test_a_refused_batch_changes_nothing_and_says_why() -> None:
    """One transaction: the first rules of a refused batch are not there."""
    netns = make_netns({})
    backend.put(netns, capture_plan(CAPTURE))
    nowhere = Chain("out_of_place", ((Goto("nowhere"),),))
    wrong = Table("ambient", (*drain_plan().chains, nowhere))

    with pytest.raises(OSError, match="add a rule to chain out_of_place"):
        backend.put(netns, wrong)

    assert backend.standing(netns) is Standing.CAPTURED


@in_namespaces
def test_netlink_refusals_name_the_act() -> None:
    """What an operator reads when a machine forbids something."""
    with NetlinkSocket() as nl:
        with pytest.raises(OSError, match="cannot find link nowhere: No such device"):
            nl.link("nowhere")
        nl.add_veth("a", "b")
        with pytest.raises(FileExistsError, match="cannot add veth a and c"):
            nl.add_veth("a", "c")
        nl.delete_link("a")
        assert [link.name for link in nl.links()] == ["lo"]
        with pytest.raises(OSError, match="cannot add route"):
            nl.run(netlink_route.add_route("10.0.0.0/8", gateway="192.0.2.1"))


# Connections through a toy proxy.


class ToyProxy:
    """Stands where ztunnel would: listeners in the pod, upstreams with the client's own address."""

    def __init__(self, pod: Host) -> None:
        self._pod = pod
        self._stack = ExitStack()
        self.outbound = self._listener(OUTBOUND_PORT)
        self.inbound = self._listener(INBOUND_PORT)

    def _listener(self, port: int) -> socket.socket:
        made = self._stack.enter_context(listen_in(self._pod.netns, port, transparent=True, mark=PROXY_MARK))
        made.settimeout(DEADLINE)
        return made

    def __enter__(self) -> ToyProxy:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def upstream(self, source: str, ip: str, port: int) -> socket.socket:
        """A marked connection from the pod's namespace, from a foreign address."""
        family = socket.AF_INET6 if ":" in ip else socket.AF_INET
        made = socket_in(self._pod.netns, family, mark=PROXY_MARK, transparent=True)
        made.settimeout(DEADLINE)
        made.bind((source, 61000))
        made.connect((ip, port))
        return made


def talk(near: socket.socket, far: socket.socket) -> None:
    """A byte each way."""
    near.sendall(b">")
    assert far.recv(1) == b">"
    far.sendall(b"<")
    assert near.recv(1) == b"<"


def pods(version: int) -> tuple[Host, Host, str, str]:
    lab = Lab()
    client, server = lab.pod("client"), lab.pod("server")
    return (client, server, *((client.ip, server.ip) if version == 4 else (client.ip6, server.ip6)))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("captured", ["client", "server"])
@in_namespaces
def test_connections_older_than_the_rules_live_on(version: int, captured: str) -> None:
    """Through capture, drain, capture again and removal, on either side, without a byte of theirs touched."""
    client, server, _, server_ip = pods(version)
    pod = client if captured == "client" else server
    with server.listen(80) as listener, client.connect(server_ip, 80) as near, ToyProxy(pod):
        far, _ = listener.accept()
        with far:
            for step in (
                lambda: backend.install(pod.netns, CAPTURE),
                lambda: backend.drain(pod.netns),
                lambda: backend.install(pod.netns, CAPTURE),
                lambda: backend.remove(pod.netns),
            ):
                step()
                talk(near, far)


@pytest.mark.parametrize("version", [4, 6])
@in_namespaces
def test_new_connections_out_are_captured_with_their_destination(version: int) -> None:
    """By both families; and they live on when the pod is released, new ones passing the proxy by."""
    client, server, _, server_ip = pods(version)
    with server.listen(80) as listener, ToyProxy(client) as proxy:
        backend.install(client.netns, CAPTURE)
        with client.connect(server_ip, 80) as near:
            middle, _ = proxy.outbound.accept()
            with middle:
                assert original_destination(middle) == (server_ip, 80)
                talk(near, middle)
                backend.drain(client.netns)
                talk(near, middle)
                with client.connect(server_ip, 80) as direct:
                    far, _ = listener.accept()
                    with far:
                        talk(direct, far)


@pytest.mark.parametrize("version", [4, 6])
@in_namespaces
def test_new_connections_in_are_captured_and_the_application_sees_the_client(version: int) -> None:
    """The answer to an address that is not here comes back to the proxy, while draining too."""
    client, server, client_ip, server_ip = pods(version)
    with server.listen(80) as listener, ToyProxy(server) as proxy:
        backend.install(server.netns, CAPTURE)
        with client.connect(server_ip, 80) as near:
            middle, _ = proxy.inbound.accept()
            with middle, proxy.upstream(client_ip, server_ip, 80) as up:
                assert original_destination(middle) == (server_ip, 80)
                far, peer = listener.accept()
                with far:
                    assert peer[0].removeprefix("::ffff:") == client_ip
                    talk(near, middle)
                    talk(up, far)
                    backend.drain(server.netns)
                    talk(near, middle)
                    talk(up, far)


@in_namespaces
def test_a_pod_talks_to_itself_and_is_probed_undisturbed() -> None:
    """Loopback and kubelet's probes are nobody else's business."""
    lab = Lab()
    server = lab.pod("server")
    with server.listen(80) as listener, ToyProxy(server):
        backend.install(server.netns, CAPTURE)
        for ip in (server.ip, server.ip6, "127.0.0.1", "::1"):
            with server.connect(ip, 80) as near:
                far, _ = listener.accept()
                with far:
                    talk(near, far)
        for source, ip in (
            ("169.254.7.127", server.ip),
            ("fd16:9254:7127:1337:ffff:ffff:ffff:ffff", server.ip6),
        ):
            with in_netns(lab.node().netns):
                probe = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
            with probe:
                probe.settimeout(DEADLINE)
                probe.bind((source, 0))
                probe.connect((ip, 80))
                far, _ = listener.accept()
                with far:
                    talk(probe, far)


@in_namespaces(rootless=True)
def test_capture_works_without_root() -> None:
    """As in a mesh that an ordinary user starts."""
    client, _, _, server_ip = pods(4)
    with ToyProxy(client) as proxy:
        backend.install(client.netns, CAPTURE)
        assert backend.standing(client.netns) is Standing.CAPTURED
        with client.connect(server_ip, 80):
            middle, _ = proxy.outbound.accept()
            middle.close()
        backend.remove(client.netns)
