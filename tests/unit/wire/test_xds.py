"""The distribution wire: its conversation, its order, and who is to blame."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ambient.errors import LocalProtocolError, RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.model.mesh import Change
from ambient.model.workload import Workload
from ambient.wire import xds
from ambient.wire.frames import encode

WEB = SpiffeId("cluster.local", "shop", "web")


def workloads(count: int) -> tuple[Workload, ...]:
    return tuple(Workload(uid=f"u{n}", name=f"n{n}", namespace="shop") for n in range(count))


def greeted() -> tuple[xds.DaemonEnd, xds.ControlEnd]:
    daemon, control = xds.DaemonEnd(), xds.ControlEnd()
    assert control.receive_data(daemon.hello()) == [xds.Greeted(xds.VERSION)]
    return daemon, control


def test_the_whole_conversation() -> None:
    """Hello, snapshot, ack, delta, certificate, report: in the order it happens."""
    daemon, control = greeted()
    snapshot = Change(workloads=workloads(2), snapshot=True)

    nonce, data = control.update(snapshot)
    assert daemon.receive_data(data) == [xds.Updated(nonce, snapshot)]
    assert control.unacked == {nonce}
    assert control.receive_data(daemon.ack(nonce)) == [xds.Acked(nonce, "")]
    assert control.unacked == frozenset()

    delta = Change(removed_workloads=("u0",))
    nonce, data = control.update(delta)
    assert daemon.receive_data(data) == [xds.Updated(nonce, delta)]
    assert control.receive_data(daemon.ack(nonce, "no")) == [xds.Acked(nonce, "no")]

    assert control.receive_data(daemon.csr(7, WEB, b"csr")) == [xds.CertificateAsked(7, WEB, b"csr")]
    assert daemon.receive_data(control.certificate(7, [b"leaf"], [b"root"], 9.0)) == [
        xds.Certified(7, (b"leaf",), (b"root",), 9.0)
    ]
    assert control.receive_data(daemon.csr(7, WEB, b"csr")) == [xds.CertificateAsked(7, WEB, b"csr")]
    assert daemon.receive_data(control.refuse(7, "no")) == [xds.CertificateRefused(7, "no")]

    report = xds.PodReport(pod="u1", state="enrolled", established_kept=2, duration_ms=1.5)
    assert control.receive_data(daemon.report(report)) == [xds.PodReported(report)]


def node_pod(uid: str) -> xds.NodePod:
    return xds.NodePod(
        uid=uid, namespace="s", name="n", service_account="a", addresses=("10.0.0.1",), netns="/proc/1/ns/net"
    )


def test_an_agent_is_told_its_pods() -> None:
    """Always the full list."""
    daemon, control = greeted()
    pod = node_pod("u")

    nonce, data = control.pods([pod])

    assert daemon.receive_data(data) == [xds.PodsNamed(nonce, (pod,))]
    assert control.receive_data(daemon.ack(nonce)) == [xds.Acked(nonce, "")]


@given(st.lists(st.dictionaries(st.integers(0, 60), st.sampled_from(["none", "ambient"])), max_size=6))
def test_an_agent_has_the_full_list_after_every_change(lists: list[dict[int, str]]) -> None:
    """Whatever came, changed and went between two lists."""
    daemon, control = greeted()

    for wanted in lists:
        pods = [replace(node_pod(f"u{number}"), mode=mode) for number, mode in wanted.items()]
        nonce, data = control.pods(pods)
        (named,) = daemon.receive_data(data)
        assert isinstance(named, xds.PodsNamed)
        assert named.nonce == nonce
        assert sorted(named.pods, key=lambda pod: pod.uid) == sorted(pods, key=lambda pod: pod.uid)


def test_only_what_differs_travels() -> None:
    """A pod of 250 that changes costs what one costs."""
    _, control = greeted()
    many = [node_pod(f"u{number}") for number in range(250)]
    _, everything = control.pods(many)
    many[7] = replace(many[7], mode="ambient")

    _, one = control.pods(many)

    assert len(one) < len(everything) / 200


def test_an_agent_holds_so_many_pods_and_no_more() -> None:
    """What control may fill has a bound."""
    daemon, control = greeted()
    _, data = control.pods([node_pod(f"u{number}") for number in range(xds.MAX_NODE_PODS + 1)])

    with pytest.raises(RemoteProtocolError, match="a node of over"):
        daemon.receive_data(data)


def test_nobody_acts_on_half_a_snapshot() -> None:
    """The slices of one update are one event."""
    daemon, control = greeted()
    change = Change(workloads=workloads(5), removed_services=("a", "b"), snapshot=True)

    nonce, data = control.update(change, slice_resources=2)

    events = [event for index in range(len(data)) for event in daemon.receive_data(data[index : index + 1])]
    assert events == [xds.Updated(nonce, change)]


def test_an_empty_snapshot_is_an_update() -> None:
    """A mesh without pods is known too."""
    daemon, control = greeted()

    nonce, data = control.update(Change(snapshot=True))

    assert daemon.receive_data(data) == [xds.Updated(nonce, Change(snapshot=True))]


def test_frames_of_the_daemons_own_pass_both_ways() -> None:
    """One connection is all a daemon has."""
    daemon, control = greeted()

    (up,) = control.receive_data(daemon.extra("statistics", streams=3))
    (down,) = daemon.receive_data(control.extra("drain"))
    (free,) = control.receive_data(daemon.extra("report", streams=3))

    assert up == xds.Extra({"kind": "statistics", "streams": 3})
    assert down == xds.Extra({"kind": "drain"})
    assert free == xds.Extra({"kind": "report", "streams": 3})
    with pytest.raises(LocalProtocolError, match="a kind of the distribution wire"):
        daemon.extra("ack")


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"kind": "hello", "version": 1}, "'hello' is not allowed twice"),
        ({"kind": "ack", "nonce": 9, "error": ""}, "nonce 9, which is not open"),
        ({"kind": "ack", "nonce": "9", "error": ""}, "lacks a field"),
        ({"kind": "csr", "id": 1, "identity": "web", "csr": b""}, "not spiffe"),
        ({"kind": "csr", "id": 1, "identity": str(WEB), "csr": b"x" * 20_000}, "limit"),
        ({"kind": "report", "pod": "u", "state": "none", "duration_ms": "long"}, "expected float"),
        ({"kind": "update"}, "not allowed here"),
        ({"kind": 7}, "not allowed here"),
    ],
    ids=["hello", "unasked-ack", "text-nonce", "bad-name", "big-csr", "bad-report", "ours", "no-kind"],
)
def test_a_broken_rule_blames_the_daemon(frame: dict[str, Any], reason: str) -> None:
    """And ends the connection."""
    _, control = greeted()

    with pytest.raises(RemoteProtocolError, match=reason):
        control.receive_data(encode(frame))

    with pytest.raises(LocalProtocolError):
        control.update(Change())


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"kind": "update", "nonce": 1, "snapshot": True}, "without 'more'"),
        ({"kind": "update", "nonce": 1, "more": False}, "'snapshot' is missing"),
        ({"kind": "update", "nonce": 1, "more": False, "snapshot": True, "services": {}}, "wrong type"),
        ({"kind": "update", "nonce": 1, "more": False, "snapshot": True, "workloads": [7]}, "expected a map"),
        (
            {"kind": "update", "nonce": 1, "more": False, "snapshot": True, "removed_workloads": [7]},
            "names are text",
        ),
        ({"kind": "certificate", "id": 1, "error": "no"}, "nobody asked for"),
        ({"kind": "pods", "nonce": 1, "pods": [{}], "removed": [], "more": False}, "missing fields"),
        ({"kind": "pods", "nonce": 1, "pods": [], "removed": [7], "more": False}, "names are text"),
        ({"kind": "pods", "nonce": 1, "pods": []}, "lacks a field"),
        ({"kind": "hello", "version": 1}, "not allowed here"),
    ],
    ids=["more", "snapshot", "list", "workload", "name", "unasked", "pod", "gone", "whole-list", "hello"],
)
def test_a_broken_rule_blames_control(frame: dict[str, Any], reason: str) -> None:
    """The daemon closes; it does not guess."""
    daemon, _ = greeted()

    with pytest.raises(RemoteProtocolError, match=reason):
        daemon.receive_data(encode(frame))

    with pytest.raises(LocalProtocolError):
        daemon.csr(1, WEB, b"")


def test_slices_that_disagree_are_refused() -> None:
    """Half a snapshot and half a delta are neither."""
    daemon, _ = greeted()
    daemon.receive_data(encode({"kind": "update", "nonce": 1, "more": True, "snapshot": True}))

    with pytest.raises(RemoteProtocolError, match="disagree"):
        daemon.receive_data(encode({"kind": "update", "nonce": 1, "more": False, "snapshot": False}))


@pytest.mark.parametrize("chain", [[], ["text"], [b"x" * 20_000]], ids=["empty", "text", "big"])
def test_an_odd_chain_is_refused(chain: list[Any]) -> None:
    """What is not a certificate goes no further."""
    daemon, _ = greeted()
    daemon.csr(1, WEB, b"")
    answer = {"kind": "certificate", "id": 1, "chain": chain, "roots": [b"r"], "not_after": 1.0, "error": ""}

    with pytest.raises(RemoteProtocolError, match="chain"):
        daemon.receive_data(encode(answer))


def test_the_order_of_our_own_words() -> None:
    """What we may not say is our bug, not the peer's."""
    daemon, control = xds.DaemonEnd(), xds.ControlEnd()
    for speak in (
        lambda: daemon.ack(1),
        lambda: daemon.csr(1, WEB, b""),
        lambda: control.update(Change()),
        lambda: control.refuse(1, "no"),
    ):
        with pytest.raises(LocalProtocolError):
            speak()
    daemon.hello()
    with pytest.raises(LocalProtocolError, match="already"):
        daemon.hello()
    with pytest.raises(LocalProtocolError, match="nothing to ack"):
        daemon.ack(1)


def test_control_does_not_speak_first_and_versions_must_agree() -> None:
    """A daemon of another release is told apart at its first word."""
    with pytest.raises(RemoteProtocolError, match="before hello"):
        xds.DaemonEnd().receive_data(encode({"kind": "pods", "nonce": 1, "pods": []}))
    with pytest.raises(RemoteProtocolError, match="version 1 is not spoken"):
        xds.ControlEnd().receive_data(encode({"kind": "hello", "version": 1}))
    with pytest.raises(RemoteProtocolError, match="before hello"):
        xds.ControlEnd().receive_data(encode({"kind": "ack", "nonce": 1, "error": ""}))


@pytest.mark.parametrize("end", [xds.DaemonEnd, xds.ControlEnd], ids=["daemon", "control"])
def test_a_cut_connection_is_no_goodbye(end: Any) -> None:
    """The end of file inside a frame is an error, between frames it is not."""
    assert end().receive_data(b"") == []
    broken = end()
    broken.receive_data(b"\x00\x00")
    with pytest.raises(RemoteProtocolError, match="middle of a frame"):
        broken.receive_data(b"")
