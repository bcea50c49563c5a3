"""What enrollment leaves in conntrack must not meet a later connection of the same addresses and ports."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack

import pytest

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import in_netns, listen_in, socket_in
from ambient.model.exclusions import Exclusions
from ambient.redirect import backend, conntrack
from ambient.redirect.plan import OUTBOUND_PORT, PROXY_MARK, Capture
from ambient.wire import netlink_conntrack
from ambient.wire.netlink import NETLINK_NETFILTER
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


@in_namespaces
def test_what_was_captured_is_forgotten_and_nothing_else() -> None:
    """Redirected to the proxy, or the proxy's to the application; more of both than fit into one datagram."""
    lab = Lab()
    pod, peer = lab.pod("pod"), lab.pod("peer", node=2)
    with ExitStack() as stack:
        proxy = stack.enter_context(listen_in(pod.netns, OUTBOUND_PORT, transparent=True, mark=PROXY_MARK))
        stack.enter_context(peer.listen(80))
        stack.enter_context(pod.listen(8080))
        backend.install(pod.netns, Capture(exclusions=Exclusions(outbound_ports=(80,))))

        def connect(address: tuple[str, int], source: str = "", mark: int | None = None) -> None:
            made = stack.enter_context(
                socket_in(pod.netns, socket.AF_INET, mark=mark, transparent=bool(mark))
            )
            made.settimeout(DEADLINE)
            made.bind((source, 0))
            made.connect(address)

        connect((peer.ip, 80))
        alone = tracked(pod)
        for _ in range(conntrack.AT_ONCE + 1):
            connect((peer.ip, 81))
            connect((pod.ip, 8080), peer.ip, PROXY_MARK)
        proxy.settimeout(DEADLINE)
        proxy.accept()[0].close()
        assert tracked(pod) > 2 * conntrack.AT_ONCE

        conntrack.forget_captured(pod.netns)

        assert tracked(pod) == alone
