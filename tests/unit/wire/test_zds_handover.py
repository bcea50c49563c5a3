"""ZDS between two ztunnels: listeners and keys go through the agent, and the older one retires."""

from __future__ import annotations

import re
from typing import Any

import msgpack
import pytest

from ambient.errors import LocalProtocolError, RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.wire import zds

WEB = SpiffeId("cluster.local", "shop", "web")
PORTS = (15001, 15006, 15008)
FDS = [5, 6, 7]  # Never opened: to a sans-IO machine a descriptor is a number.


def ends(*, retired: bool = False) -> tuple[zds.AgentConnection, zds.ZtunnelConnection]:
    """Both ends, past the hello."""
    agent, ztunnel = zds.AgentConnection(), zds.ZtunnelConnection()
    assert agent.receive_packet(ztunnel.hello(retired=retired)) == zds.Greeted(retired)
    return agent, ztunnel


def test_what_one_ztunnel_leaves_the_next_one_gets() -> None:
    """Told by ztunnel at any time, passed on before the ``add`` that needs it, each answered."""
    agent, ztunnel = ends()
    passed = zds.ListenersPassed("web-1", tuple(zip(PORTS, FDS, strict=True)))

    assert agent.receive_packet(ztunnel.listeners("web-1", PORTS), FDS) == passed
    assert agent.receive_packet(ztunnel.key(WEB), [9]) == zds.KeyPassed(WEB, 9)
    assert ztunnel.receive_packet(agent.key(WEB), [9]) == zds.KeyPassed(WEB, 9)
    assert ztunnel.receive_packet(agent.listeners("web-1", PORTS), FDS) == passed
    assert agent.receive_packet(ztunnel.ack()) == zds.Acked("key", "", "")
    assert agent.receive_packet(ztunnel.ack()) == zds.Acked("listeners", "web-1", "")


def test_a_retired_ztunnel_says_so_when_it_dials_again() -> None:
    """Or an agent that has just started would take it for the newest."""
    agent, ztunnel = ends()
    assert ztunnel.receive_packet(agent.retire()) == zds.Retired()
    assert agent.receive_packet(ztunnel.ack()) == zds.Acked("retire", "", "")

    ends(retired=True)


@pytest.mark.parametrize(
    ("frame", "fds", "message"),
    [
        ({"kind": "listeners", "uid": "a", "ports": [1, 2]}, 1, "'listeners' with 1 descriptors"),
        ({"kind": "listeners", "uid": "a"}, 1, "'listeners' with 1 descriptors"),
        ({"kind": "listeners", "uid": "a", "ports": []}, 0, "'listeners' lacks a field"),
        ({"kind": "listeners", "uid": 7, "ports": [1]}, 1, "'listeners' lacks a field"),
        ({"kind": "listeners", "uid": "a", "ports": [1, 1]}, 2, "'listeners' lacks a field"),
        ({"kind": "listeners", "uid": "a", "ports": [65536]}, 1, "'listeners' lacks a field"),
        ({"kind": "listeners", "uid": "a", "ports": [True]}, 1, "'listeners' lacks a field"),
        ({"kind": "listeners", "uid": "a", "ports": list(range(1, 18))}, 17, "'listeners' lacks a field"),
        ({"kind": "key", "identity": str(WEB)}, 0, "'key' with 0 descriptors"),
        ({"kind": "key", "identity": str(WEB)}, 2, "'key' with 2 descriptors"),
        ({"kind": "key", "identity": "web"}, 1, "not spiffe://"),
        ({"kind": "key"}, 1, "'key' lacks a field"),
    ],
    ids=[
        "fewer-fds-than-ports",
        "no-ports",
        "empty",
        "uid-not-text",
        "port-twice",
        "port-too-high",
        "port-is-true",
        "too-many",
        "key-without-fd",
        "key-with-two",
        "bad-identity",
        "key-without-identity",
    ],
)
def test_what_makes_no_sense_is_passed_on_by_nobody(frame: dict[str, Any], fds: int, message: str) -> None:
    """ztunnel answers and goes on, the agent hangs up; the descriptors stay the caller's to close."""
    agent, ztunnel = ends()
    packet = msgpack.packb(frame)

    refused = ztunnel.receive_packet(packet, [5] * fds)
    with pytest.raises(RemoteProtocolError, match=message):
        agent.receive_packet(packet, [5] * fds)

    assert isinstance(refused, zds.Refused)
    assert re.search(message, refused.reason)
    assert agent.state is zds.State.ERROR


def test_no_more_listeners_than_a_packet_takes() -> None:
    """Our own mistake does not reach the wire."""
    _agent, ztunnel = ends()

    with pytest.raises(LocalProtocolError, match="17 listeners"):
        ztunnel.listeners("web-1", range(1, 18))
