"""The cluster's one step looks at little, and misses nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from ambient.control.cluster import Cluster
from ambient.control.distribution import Peer
from ambient.control.enrollment import write_labels
from ambient.control.node_pods import NodePods
from ambient.control.pods import Pod, Status
from ambient.control.service import make_cluster
from ambient.model.enrollment import DATAPLANE_MODE
from ambient.model.manifest import parse_object
from ambient.wire.xds import PodReport

NODES = ("node-1", "node-2")
PODS = 4

numbers = st.integers(0, PODS - 1)
events = st.one_of(
    st.tuples(st.just("status"), numbers, st.booleans()),
    st.tuples(
        st.just("report"), numbers, st.sampled_from(["enrolled", "lost", "failed", "draining", "none"])
    ),
    st.tuples(st.just("label"), numbers, st.sampled_from(["ambient", "none", None])),
    st.tuples(st.just("namespace"), st.just(0), st.sampled_from(["ambient", None])),
    st.tuples(st.just("replicas"), st.integers(0, PODS), st.none()),
    st.tuples(st.just("restart"), numbers, st.none()),
)


def deployment(replicas: int) -> dict[str, Any]:
    containers = [{"name": "app", "image": "none"}]
    template = {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": containers}}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": spec,
    }


def apply(cluster: Cluster, body: dict[str, Any]) -> None:
    store, _ = cluster.store.apply([parse_object(body, "test:1")], 1.0)
    cluster.commit(store)


def happen(cluster: Cluster, kind: str, number: int, value: Any) -> None:
    pods = cluster.pods()
    pod = pods[number] if number < len(pods) else None
    match kind:
        case "replicas":
            apply(cluster, deployment(number))
        case "namespace":
            write_labels(cluster, {"default": {DATAPLANE_MODE: value}}, {})
        case "status" if pod:
            cluster.set_status(pod.uid, Status(phase="Running", ready=value, netns=f"/proc/{number}/ns/net"))
        case "report" if pod:
            cluster.pod_reported(Peer("agent", pod.node), PodReport(pod=pod.uid, state=value))
            cluster.reconcile()
        case "label" if pod:
            write_labels(cluster, {}, {pod.key: {DATAPLANE_MODE: value}})
        case "restart" if pod:
            cluster.restart(pod)


def seen(cluster: Cluster) -> tuple[Any, ...]:
    """Everything that anybody is told."""
    named = {node: {pod.uid: pod for pod in cluster.node_pods(node)} for node in NODES}
    captures = {pod.uid: pod.capture for pod in cluster.pods()}
    return dict(cluster.registry().workloads), named, captures


def named_anew(pods: tuple[Pod, ...]) -> dict[str, set[str]]:
    made = NodePods()
    made.look_at([pod.uid for pod in pods], {pod.uid: pod for pod in pods})
    return {node: {repr(pod) for pod in made.of(node)} for node in NODES}


@given(st.lists(events, max_size=20))
@example([("status", 0, True), ("label", 0, "ambient"), ("report", 0, "enrolled"), ("report", 0, "lost")])
@example([("namespace", 0, "ambient"), ("status", 1, True), ("report", 1, "failed"), ("restart", 1, None)])
@example([("status", 0, True), ("status", 1, True), ("replicas", 1, None), ("status", 0, False)])
def test_nothing_is_left_to_do_after_a_word_on_one_pod(story: list[tuple[str, int, Any]]) -> None:
    """Looking at everything again finds what looking at what was touched has found."""
    cluster = make_cluster(clock=lambda: 1.0)
    cluster.set_nodes(NODES)
    apply(cluster, deployment(PODS))
    for kind, number, value in story:
        happen(cluster, kind, number, value)

        before = seen(cluster)
        assert {node: {repr(pod) for pod in pods.values()} for node, pods in before[1].items()} == named_anew(
            cluster.pods()
        )
        cluster.changed()
        assert seen(cluster) == before


def test_a_word_on_one_pod_leaves_the_list_of_other_nodes_alone() -> None:
    """The very object: whoever compares sees it at a glance."""
    cluster = make_cluster(clock=lambda: 1.0)
    cluster.set_nodes(NODES)
    apply(cluster, deployment(PODS))
    for number in range(PODS):
        happen(cluster, "status", number, True)
    before = {node: cluster.node_pods(node) for node in NODES}
    pod = cluster.pods()[0]

    happen(cluster, "label", 0, "ambient")

    other = next(node for node in NODES if node != pod.node)
    assert cluster.node_pods(other) is before[other]
    assert [each.mode for each in cluster.node_pods(pod.node) if each.uid == pod.uid] == ["ambient"]
