"""What enrollment leaves in conntrack must not meet a later connection of the same addresses and ports."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from ambient.engine.netlink import REQUESTS_AT_ONCE, NetlinkSocket
from ambient.engine.netns import in_netns, listen_in, socket_in
from ambient.model.exclusions import Exclusions
from ambient.redirect import backend, backends
from ambient.redirect.plan import OUTBOUND_PORT, PROXY_MARK, Capture, capture_plan
from ambient.wire import netlink_conntrack
from ambient.wire.netlink import NETLINK_NETFILTER
from ambient.wire.nft import Table
from tests.lab import DEADLINE, Host, Lab, in_namespaces

# Below the ephemeral ports, so that nobody else gets it.
PORT = 20001


def connect_from(host: Host, address: str) -> socket.socket:
    """A connection from PORT, whatever was there before; it ends in a reset, so that it may come again."""
    with in_netns(host.netns):
        made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    made.settimeout(DEADLINE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.bind(("", PORT))
    made.connect((address, 80))
    return made


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@in_namespaces
def test_a_connection_with_the_ports_of_one_that_was_captured_before_lives_through_enrollment(
    family: str,
) -> None:
    """Conntrack still takes the old one for redirected, and gives answers to the new one another port."""
    lab = Lab()
    pod, peer = lab.pod("pod"), lab.pod("peer", node=2)
    address = peer.ip6 if family == "IPv6" else peer.ip
    with ExitStack() as stack:
        proxy = stack.enter_context(listen_in(pod.netns, OUTBOUND_PORT, transparent=True))
        proxy.settimeout(DEADLINE)
        server = stack.enter_context(peer.listen(80))

        backend.install(pod.netns, Capture())
        with connect_from(pod, address):
            proxy.accept()[0].close()
        backend.remove(pod.netns)

        client = stack.enter_context(connect_from(pod, address))
        accepted = stack.enter_context(server.accept()[0])
        backend.install(pod.netns, Capture())
        accepted.settimeout(DEADLINE)
        # The other end speaks first: its packet is the one by which conntrack gets to know the connection.
        accepted.sendall(b"still here?")
        client.settimeout(3)

        assert client.recv(100) == b"still here?"
        client.sendall(b"yes")
        assert accepted.recv(100) == b"yes"


def tracked(host: Host) -> int:
    with NetlinkSocket(host.netns, NETLINK_NETFILTER) as nl:
        return netlink_conntrack.decode_count(nl.get(netlink_conntrack.ask_count()))


@contextmanager
def many_tracked(pod: Host, peer: Host) -> Iterator[None]:
    """Connections that were captured, both ways and more than fit into one datagram; and one that was not."""
    with ExitStack() as stack:
        proxy = stack.enter_context(listen_in(pod.netns, OUTBOUND_PORT, transparent=True, mark=PROXY_MARK))
        stack.enter_context(peer.listen(80))
        stack.enter_context(pod.listen(8080))
        backend.install(pod.netns, Capture(exclusions=Exclusions(outbound_ports=(80,))))

        def connect(address: tuple[str, int], source: str = "", mark: int | None = None) -> None:
            made = socket_in(pod.netns, socket.AF_INET, mark=mark, transparent=bool(mark))
            stack.enter_context(made).settimeout(DEADLINE)
            made.bind((source, 0))
            made.connect(address)

        connect((peer.ip, 80))
        assert tracked(pod) == 1
        for _ in range(REQUESTS_AT_ONCE + 1):
            connect((peer.ip, 81))
            connect((pod.ip, 8080), peer.ip, PROXY_MARK)
        proxy.settimeout(DEADLINE)
        proxy.accept()[0].close()
        assert tracked(pod) > 2 * REQUESTS_AT_ONCE
        yield


@in_namespaces
def test_where_others_have_rules_what_was_not_captured_stays_tracked() -> None:
    """It may be translated by theirs, and its answers would go astray."""
    lab = Lab()
    pod, peer = lab.pod("pod"), lab.pod("peer", node=2)
    with many_tracked(pod, peer):
        backend.put(pod.netns, Table("theirs", capture_plan(Capture()).chains[:1]))

        backend.remove(pod.netns)

        assert tracked(pod) == 1


@pytest.mark.parametrize("tool", ["iptables-legacy", "ip6tables-legacy"])
@in_namespaces
def test_where_others_use_the_legacy_tables_it_stays_too(tool: str) -> None:
    lab = Lab()
    pod, peer = lab.pod("pod"), lab.pod("peer", node=2)
    with many_tracked(pod, peer):
        backends.run(pod.netns, (tool, "-t", "nat", "-A", "OUTPUT", "-p", "udp", "-j", "ACCEPT"))

        backend.remove(pod.netns)

        assert tracked(pod) == 1


@in_namespaces
def test_a_pod_that_tracked_for_us_alone_forgets_everything() -> None:
    """Whoever enrolls it again would have the kernel walk over it."""
    lab = Lab()
    pod, peer = lab.pod("pod"), lab.pod("peer", node=2)
    with many_tracked(pod, peer):
        backend.remove(pod.netns)

        assert tracked(pod) == 0
