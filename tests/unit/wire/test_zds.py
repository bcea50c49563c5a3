"""ZDS, both ends: the conversation as it should go, and every way it should not."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgpack
import pytest

from ambient.errors import LocalProtocolError, RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.wire import zds

WEB = zds.WorkloadInfo(
    uid="Kubernetes//Pod/shop/web-1#1",
    name="web-1",
    namespace="shop",
    service_account="web",
    identity=SpiffeId("cluster.local", "shop", "web"),
)
FD = 7  # Never opened: to a sans-IO machine a descriptor is a number.


def pack(value: object) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def add_frame(**changes: Any) -> dict[str, Any]:
    frame = {
        "kind": "add",
        "uid": WEB.uid,
        "name": WEB.name,
        "namespace": WEB.namespace,
        "service_account": WEB.service_account,
        "identity": str(WEB.identity),
        "dns_capture": False,
    }
    return frame | changes


def ends() -> tuple[zds.AgentConnection, zds.ZtunnelConnection]:
    """Both ends, past the hello."""
    agent, ztunnel = zds.AgentConnection(), zds.ZtunnelConnection()
    assert agent.receive_packet(ztunnel.hello()) == zds.Greeted()
    return agent, ztunnel


def test_snapshot_then_live() -> None:
    """The whole happy conversation, in the order it happens."""
    agent, ztunnel = ends()

    assert ztunnel.receive_packet(agent.add(WEB), [FD]) == zds.WorkloadAdded(WEB, FD)
    assert agent.unanswered == 1
    assert agent.receive_packet(ztunnel.ack()) == zds.Acked("add", WEB.uid, "")

    assert ztunnel.receive_packet(agent.snapshot_sent()) == zds.SnapshotSent(frozenset({WEB.uid}))
    assert agent.receive_packet(ztunnel.ack()) == zds.Acked("snapshot_sent", "", "")
    assert ztunnel.state is agent.state is zds.State.LIVE

    assert ztunnel.receive_packet(agent.delete(WEB.uid)) == zds.WorkloadRemoved(WEB.uid)
    assert agent.receive_packet(ztunnel.ack("busy")) == zds.Acked("del", WEB.uid, "busy")
    assert agent.receive_packet(ztunnel.drained(WEB.uid)) == zds.Drained(WEB.uid)
    assert agent.unanswered == 0


def test_acks_answer_in_order_whatever_comes_between() -> None:
    """The agent may send on before it is answered; ``drained`` may come at any time."""
    agent, ztunnel = ends()
    other = dataclasses.replace(WEB, uid="other")
    for packet in (agent.add(WEB), agent.add(other)):
        ztunnel.receive_packet(packet, [FD])

    answers = [agent.receive_packet(p) for p in (ztunnel.ack("no"), ztunnel.drained("old"), ztunnel.ack())]

    assert answers == [zds.Acked("add", WEB.uid, "no"), zds.Drained("old"), zds.Acked("add", "other", "")]


def test_a_workload_removed_before_the_snapshot_is_not_in_it() -> None:
    """It went while the agent was still naming."""
    agent, ztunnel = ends()
    ztunnel.receive_packet(agent.add(WEB), [FD])
    ztunnel.receive_packet(agent.delete(WEB.uid))

    assert ztunnel.receive_packet(agent.snapshot_sent()) == zds.SnapshotSent(frozenset())


def test_dns_capture_may_be_left_out() -> None:
    """An older agent does not know it."""
    _agent, ztunnel = ends()
    frame = add_frame()
    del frame["dns_capture"]

    assert ztunnel.receive_packet(pack(frame), [FD]) == zds.WorkloadAdded(WEB, FD)


@pytest.mark.parametrize(
    ("packet", "fds", "message"),
    [
        (pack({"kind": "nonsense"}), 0, "'nonsense' is not allowed in SNAPSHOT"),
        (pack({"kind": "hello", "version": 1}), 0, "'hello' is not allowed"),
        (pack({}), 0, "'None' is not allowed"),
        (pack({"kind": "del"}), 0, "'del' lacks a field"),
        (pack({"kind": "del", "uid": 7}), 0, "'del' lacks a field"),
        (pack(add_frame(uid=7)), 1, "'add' lacks a field"),
        (pack(add_frame(uid="")), 1, "'add' lacks a field"),
        (pack(add_frame(dns_capture="yes")), 1, "'add' lacks a field"),
        (pack(add_frame(identity="web")), 1, "not spiffe://"),
        (pack(add_frame()), 0, "'add' with 0 descriptors"),
        (pack(add_frame()), 2, "'add' with 2 descriptors"),
        (pack({"kind": "snapshot_sent"}), 1, "'snapshot_sent' with 1 descriptors"),
        (pack(add_frame(uid="a\nb")), 1, "'add' lacks a field"),
        (pack(add_frame(uid="a/../b")), 1, "'add' lacks a field"),
        (pack(add_frame(uid="x" * 2000)), 1, "'add' lacks a field"),
    ],
    ids=[
        "unknown-kind",
        "own-kind",
        "no-kind",
        "del-without-uid",
        "del-uid-not-text",
        "uid-not-text",
        "uid-empty",
        "dns-capture-not-bool",
        "bad-identity",
        "add-without-fd",
        "add-with-two-fds",
        "fd-with-snapshot",
        "uid-with-a-newline",
        "uid-that-climbs",
        "uid-too-long",
    ],
)
def test_a_request_without_sense_is_refused(packet: bytes, fds: int, message: str) -> None:
    """It is answered, in its turn; what comes after it is served."""
    agent, ztunnel = ends()

    event = ztunnel.receive_packet(packet, [FD] * fds)

    assert isinstance(event, zds.Refused)
    assert message in event.reason
    assert ztunnel.ack(event.reason)
    assert ztunnel.receive_packet(agent.add(WEB), [FD]) == zds.WorkloadAdded(WEB, FD)


@pytest.mark.parametrize(
    ("packet", "message"),
    [(pack([1]), "expected a map"), (pack(add_frame(name="x" * zds.MAX_PACKET_BYTES)), "over 4096 bytes")],
    ids=["not-a-map", "too-long"],
)
def test_what_is_no_request_ends_the_connection(packet: bytes, message: str) -> None:
    """Nobody knows what it was meant to be, so nobody knows what its answer would answer."""
    _agent, ztunnel = ends()

    with pytest.raises(RemoteProtocolError, match=message):
        ztunnel.receive_packet(packet)

    assert ztunnel.state is zds.State.ERROR
    with pytest.raises(LocalProtocolError):
        ztunnel.ack()


def test_a_second_snapshot_is_refused() -> None:
    """It would remove what was added live."""
    agent, ztunnel = ends()
    packet = agent.snapshot_sent()
    ztunnel.receive_packet(packet)

    assert ztunnel.receive_packet(packet) == zds.Refused("'snapshot_sent' is not allowed in LIVE")


def test_a_cut_packet_is_refused() -> None:
    """Half an ``add`` could be a valid map that means something else."""
    agent, ztunnel = ends()

    with pytest.raises(RemoteProtocolError, match="cut"):
        ztunnel.receive_packet(agent.add(WEB), [FD], truncated=True)


@pytest.mark.parametrize(
    ("frame", "fds", "message"),
    [
        ({"kind": "ack", "error": ""}, 0, "ack without a request"),
        ({"kind": "ack"}, 0, "'ack' lacks a field"),
        ({"kind": "drained", "uid": "x"}, 1, "'drained' with 1 descriptors"),
        ({"kind": "hello", "version": 1}, 0, "'hello' is not allowed in SNAPSHOT"),
    ],
    ids=["ack-of-nothing", "ack-without-error", "fd", "second-hello"],
)
def test_broken_rule_blames_ztunnel(frame: dict[str, Any], fds: int, message: str) -> None:
    """The agent survives a ztunnel of another make."""
    agent, _ztunnel = ends()

    with pytest.raises(RemoteProtocolError, match=message):
        agent.receive_packet(pack(frame), [FD] * fds)

    assert agent.state is zds.State.ERROR


def test_another_version_is_refused() -> None:
    """Better no enrollment than a misunderstood one."""
    with pytest.raises(RemoteProtocolError, match="speaks ZDS 2, we speak 1"):
        zds.AgentConnection().receive_packet(pack({"kind": "hello", "version": 2}))


def test_nothing_is_said_out_of_turn() -> None:
    """Our own mistakes are ours, and do not reach the wire."""
    agent, ztunnel = zds.AgentConnection(), zds.ZtunnelConnection()
    with pytest.raises(LocalProtocolError, match="HELLO"):
        agent.add(WEB)
    with pytest.raises(LocalProtocolError, match="HELLO"):
        ztunnel.ack()
    ztunnel.hello()
    with pytest.raises(LocalProtocolError, match="ack without a request"):
        ztunnel.ack()
    with pytest.raises(LocalProtocolError, match="SNAPSHOT"):
        ztunnel.hello()


def test_requests_without_an_answer_are_bounded() -> None:
    """A ztunnel that never answers must not make the agent grow."""
    agent, _ztunnel = ends()
    for _ in range(zds.MAX_UNANSWERED):
        agent.delete("x")

    with pytest.raises(LocalProtocolError, match="without an ack"):
        agent.delete("x")


def test_no_packet_of_ours_is_over_the_bound() -> None:
    """A long name is refused here, a long reason is cut."""
    agent, ztunnel = ends()
    with pytest.raises(LocalProtocolError, match="limit 4096"):
        agent.add(dataclasses.replace(WEB, name="x" * zds.MAX_PACKET_BYTES))
    ztunnel.receive_packet(agent.add(WEB), [FD])

    assert len(ztunnel.ack("\N{BOMB}" * 10_000)) <= zds.MAX_PACKET_BYTES
