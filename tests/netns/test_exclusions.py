"""What a pod's owner wants left alone is left alone, both ways, by port and by network, in both families."""

from __future__ import annotations

import errno
import select
import socket

import pytest

from ambient.engine.netns import original_destination
from ambient.model.exclusions import Exclusions
from ambient.redirect import backend
from ambient.redirect.plan import Capture, closed_plan
from tests.lab import Host, Lab, in_namespaces
from tests.netns.test_rules import ToyProxy, talk


def pods(version: int) -> tuple[Host, Host, str, str]:
    lab = Lab()
    client, server = lab.pod("client"), lab.pod("server")
    return (client, server, *((client.ip, server.ip) if version == 4 else (client.ip6, server.ip6)))


def reaches_application(near: socket.socket, listener: socket.socket) -> bool:
    """Whether *near* arrives at *listener* itself, and talks there."""
    if not select.select([listener], [], [], 1.0)[0]:
        return False
    far, _ = listener.accept()
    with far:
        talk(near, far)
    return True


@pytest.mark.parametrize("version", [4, 6])
@in_namespaces
def test_outbound_exclusions_pass_the_proxy_by(version: int) -> None:
    """The port, the network; and everything else is captured as ever."""
    client, server, _, server_ip = pods(version)
    by_port = Capture(exclusions=Exclusions(outbound_ports=(81,)))
    by_range = Capture(exclusions=Exclusions(outbound_ranges=(server_ip,)))
    with server.listen(80) as web, server.listen(81) as other, ToyProxy(client) as proxy:
        backend.install(client.netns, by_port)
        with client.connect(server_ip, 81) as near:
            assert reaches_application(near, other)
        with client.connect(server_ip, 80) as near:
            middle, _ = proxy.outbound.accept()
            with middle:
                assert original_destination(middle) == (server_ip, 80)
                talk(near, middle)
        backend.install(client.netns, by_range)
        with client.connect(server_ip, 80) as near:
            assert reaches_application(near, web)


@pytest.mark.parametrize("version", [4, 6])
@in_namespaces
def test_inbound_exclusions_reach_the_application(version: int) -> None:
    """By the port asked for, or by who asks."""
    client, server, client_ip, server_ip = pods(version)
    by_port = Capture(exclusions=Exclusions(inbound_ports=(81,)))
    by_range = Capture(exclusions=Exclusions(inbound_ranges=(client_ip,)))
    with server.listen(80) as web, server.listen(81) as other, ToyProxy(server) as proxy:
        backend.install(server.netns, by_port)
        with client.connect(server_ip, 81) as near:
            assert reaches_application(near, other)
        with client.connect(server_ip, 80) as near:
            middle, _ = proxy.inbound.accept()
            with middle:
                talk(near, middle)
        backend.install(server.netns, by_range)
        with client.connect(server_ip, 80) as near:
            assert reaches_application(near, web)


@pytest.mark.parametrize("version", [4, 6])
@in_namespaces
def test_a_closed_pod_lets_nobody_in_but_goes_out_and_is_probed(version: int) -> None:
    """Fail closed, and yet its kubelet need not kill it; loopback and exclusions live too."""
    client, server, _, server_ip = pods(version)
    with server.listen(80) as web, server.listen(81) as other, client.listen(80) as out:
        with client.connect(server_ip, 80) as older:
            far, _ = web.accept()
            backend.put(server.netns, closed_plan(Capture(exclusions=Exclusions(inbound_ports=(81,)))))
            with far:
                talk(older, far)
        with pytest.raises(OSError) as caught, client.connect(server_ip, 80, deadline=0.5):
            pass
        assert caught.value.errno in (None, errno.ETIMEDOUT)
        with client.connect(server_ip, 81) as near:
            assert reaches_application(near, other)
        with server.connect(server_ip, 80) as near:
            assert reaches_application(near, web)
        with server.connect(client.ip if version == 4 else client.ip6, 80) as near:
            assert reaches_application(near, out)
