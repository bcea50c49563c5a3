"""A namespace's TCP sockets, as the agent asks for them."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack

import pytest

from ambient.engine.netlink import NetlinkSocket
from ambient.engine.netns import listen_in, socket_in
from ambient.redirect import backend, sockets
from ambient.redirect.plan import HBONE_PORT, MARK_MASK, OUTBOUND_PORT, PROXY_MARK, Capture
from ambient.wire.netlink_diag import TcpSocket
from tests.lab import DEADLINE, Lab, in_namespaces, make_netns


def connected(stack: ExitStack, netns: int, host: str, client: str) -> socket.socket:
    """A connection from *client* to *host*, both of the namespace's own; the client's end."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = stack.enter_context(listen_in(netns, 0, host=host, v6only=":" in host))
    sock = stack.enter_context(socket_in(netns, family))
    sock.settimeout(DEADLINE)
    listener.settimeout(DEADLINE)
    sock.bind((client, 0))
    sock.connect(listener.getsockname()[:2])
    stack.enter_context(listener.accept()[0])
    return sock


def until_routed(netns: int, host: str) -> None:
    """Wait for the way to an address of IPv6, which the kernel makes a moment after the address."""
    deadline = time.monotonic() + DEADLINE
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket_in(netns, family, socket.SOCK_DGRAM) as sock:
        while sock.connect_ex((host, 9)) and time.monotonic() < deadline:
            time.sleep(0.002)


@pytest.mark.parametrize(
    ("host", "client"), [("10.9.0.1", "10.9.0.2"), ("fd09::1", "fd09::2")], ids=["IPv4", "IPv6"]
)
@in_namespaces
def test_what_is_open_is_told_from_what_listens(host: str, client: str) -> None:
    """Both ends of a connection are the pod's here, and both are seen; a pod that only listens has none."""
    netns = make_netns({})
    with NetlinkSocket(netns) as nl:
        for address in (host, client):
            nl.add_address("lo", f"{address}/{128 if ':' in address else 32}")
    until_routed(netns, host)
    with ExitStack() as stack:
        assert sockets.established(netns) == ()
        stack.enter_context(listen_in(netns, 0))
        assert sockets.established(netns) == ()

        client_end = connected(stack, netns, host, client)

        found = sockets.established(netns)
        assert {(each.local, each.remote) for each in found} == {(host, client), (client, host)}
        assert client_end.getsockname()[1] in {each.local_port for each in found}
    assert sockets.established(netns) == ()


@pytest.mark.parametrize("host", ["::", "0.0.0.0"])
@in_namespaces
def test_a_port_that_is_taken_everywhere_is_found_quickly(host: str) -> None:
    netns = make_netns({})
    assert not sockets.anybody_listens(netns)

    with listen_in(netns, HBONE_PORT, host=host):
        assert sockets.anybody_listens(netns)
    assert not sockets.anybody_listens(netns)


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
@in_namespaces
def test_what_is_older_is_told_from_what_the_listing_saw_without_its_proxy(family: str) -> None:
    """A listing takes its time, and the proxy's socket may come behind it: the kernel is asked once more."""
    lab = Lab()
    pod, peer = lab.pod("pod"), lab.pod("peer", node=2)
    theirs, ours = (peer.ip6, pod.ip6) if family == "IPv6" else (peer.ip, pod.ip)
    listing = sockets.established
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        far, near = stack.enter_context(peer.listen(80)), stack.enter_context(pod.listen(8080))
        older = stack.enter_context(pod.connect(theirs, 80))
        stack.enter_context(far.accept()[0])
        proxy = stack.enter_context(listen_in(pod.netns, OUTBOUND_PORT, transparent=True, mark=PROXY_MARK))
        proxy.settimeout(DEADLINE)
        backend.install(pod.netns, Capture())

        out = stack.enter_context(pod.connect(theirs, 80))
        stack.enter_context(proxy.accept()[0])
        dialled = stack.enter_context(socket_in(pod.netns, out.family, mark=PROXY_MARK, transparent=True))
        dialled.settimeout(DEADLINE)
        dialled.bind((theirs, 0))
        dialled.connect((ours, 8080))
        stack.enter_context(near.accept()[0])

        def found() -> set[tuple[str, int]]:
            past = sockets.past_the_proxy(pod.netns, Capture())
            return {(each.local, each.local_port) for each in past}

        def without_proxys(netns: int) -> tuple[TcpSocket, ...]:
            return tuple(each for each in listing(netns) if each.mark & MARK_MASK != PROXY_MARK)

        assert found() == {older.getsockname()[:2]}
        patch.setattr(sockets, "established", without_proxys)
        assert found() == {older.getsockname()[:2]}
