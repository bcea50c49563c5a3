"""ZDS: what holds for every conversation and every packet of garbage."""

from __future__ import annotations

from contextlib import suppress

import msgpack
from hypothesis import given
from hypothesis import strategies as st

from ambient.errors import LocalProtocolError, RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.wire import zds

names = st.sampled_from(["web", "api", "db", "cache"])
workloads = st.builds(
    lambda uid, account, dns: zds.WorkloadInfo(
        uid=uid,
        name=account,
        namespace="shop",
        service_account=account,
        identity=SpiffeId("cluster.local", "shop", account),
        dns_capture=dns,
    ),
    st.text(
        st.characters(categories=("L", "N", "P"), exclude_characters="/"), min_size=1, max_size=40
    ).filter(lambda uid: uid != ".."),
    names,
    st.booleans(),
)
requests = st.tuples(st.sampled_from(["add", "del"]), workloads)


def say(agent: zds.AgentConnection, kind: str, workload: zds.WorkloadInfo) -> tuple[bytes, list[int]]:
    return (agent.add(workload), [5]) if kind == "add" else (agent.delete(workload.uid), [])


@given(st.lists(requests, max_size=12), st.lists(requests, max_size=12))
def test_what_the_agent_says_is_what_ztunnel_hears(
    before: list[tuple[str, zds.WorkloadInfo]], after: list[tuple[str, zds.WorkloadInfo]]
) -> None:
    """Both ends agree on every request, on the snapshot, and on what is still open."""
    agent, ztunnel = zds.AgentConnection(), zds.ZtunnelConnection()
    agent.receive_packet(ztunnel.hello())
    named: set[str] = set()
    for part in (before, after):
        for kind, workload in part:
            event = ztunnel.receive_packet(*say(agent, kind, workload))
            if kind == "add":
                assert event == zds.WorkloadAdded(workload, 5)
                named.add(workload.uid)
            else:
                assert event == zds.WorkloadRemoved(workload.uid)
                named.discard(workload.uid)
            assert agent.receive_packet(ztunnel.ack()) == zds.Acked(kind, workload.uid, "")
        if part is before:
            assert ztunnel.receive_packet(agent.snapshot_sent()) == zds.SnapshotSent(frozenset(named))
            agent.receive_packet(ztunnel.ack())

    assert agent.unanswered == 0
    assert agent.state is ztunnel.state is zds.State.LIVE


scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.text(max_size=20) | st.binary(max_size=20)
)
kinds = st.sampled_from(
    ["hello", "add", "del", "snapshot_sent", "ack", "drained", "listeners", "key", "retire", "other"]
)
fields = ["uid", "name", "namespace", "service_account", "identity", "dns_capture", "error", "version"]
almost = st.dictionaries(
    st.sampled_from([*fields, "ports", "retired"]),
    scalars | st.lists(scalars, max_size=2),
).flatmap(lambda frame: kinds.map(lambda kind: msgpack.packb(frame | {"kind": kind})))


@given(st.lists(st.tuples(st.binary(max_size=64) | almost, st.integers(0, 2), st.booleans()), max_size=8))
def test_garbage_raises_only_remote_protocol_error(packets: list[tuple[bytes, int, bool]]) -> None:
    """Whatever the peer sends, the worst outcome is "close the connection"."""
    ztunnel, agent = zds.ZtunnelConnection(), zds.AgentConnection()
    ztunnel.hello()
    for end in (ztunnel, agent):
        with suppress(RemoteProtocolError):
            for data, fds, cut in packets:
                end.receive_packet(data, [5] * fds, cut)
        if end.state is zds.State.ERROR:
            with suppress(LocalProtocolError):
                end.receive_packet(b"")
                raise AssertionError("an error leaves the connection unusable")
