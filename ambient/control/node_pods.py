"""What the agent of each node is told of its pods, made anew only where something has changed.

Floor 3, no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ambient.control.pods import Pod, Role
from ambient.model.enrollment import Mode, dns_capture
from ambient.model.exclusions import exclusions_of
from ambient.wire.xds import NodePod


class NodePods:
    """Lists by node; a list that says the same is the same object."""

    def __init__(self) -> None:
        self._by_node: dict[str, dict[str, NodePod]] = {}
        self._lists: dict[str, tuple[NodePod, ...]] = {}
        # By uid: of what it was made, and what.
        self._made: dict[str, tuple[tuple[object, ...], str, NodePod]] = {}

    def of(self, node: str) -> tuple[NodePod, ...]:
        """The pods whose capture is the agent's business: those with a proxy of their own are not."""
        if node not in self._lists:
            self._lists[node] = tuple(self._by_node.get(node, {}).values())
        return self._lists[node]

    def look_at(self, uids: Iterable[str], pods: Mapping[str, Pod]) -> None:
        """Bring up to date what is told of *uids*, which may be gone from *pods*."""
        for uid in uids:
            pod = pods.get(uid)
            if pod is None or not pod.status.netns or not _is_agents(pod):
                self._forget(uid)
                continue
            facts = (pod.status.netns, pod.capture.captured, pod.existing)
            known = self._made.get(uid)
            if known is None or known[0] != facts:
                self._made[uid] = (facts, pod.node, made := _node_pod(pod))
                self._by_node.setdefault(pod.node, {})[uid] = made
                self._lists.pop(pod.node, None)

    def _forget(self, uid: str) -> None:
        known = self._made.pop(uid, None)
        if known is not None:
            del self._by_node[known[1]][uid]
            self._lists.pop(known[1], None)


def _is_agents(pod: Pod) -> bool:
    return pod.role is Role.APP and pod.mode is not Mode.SIDECAR and not pod.spec.host_network


def _node_pod(pod: Pod) -> NodePod:
    return NodePod(
        uid=pod.uid,
        namespace=pod.namespace,
        name=pod.name,
        service_account=pod.spec.service_account,
        addresses=pod.addresses,
        netns=pod.status.netns,
        mode="ambient" if pod.capture.captured else "none",
        existing=pod.existing,
        # A guest asks name servers of its own, which know what ours does not.
        dns_capture=dns_capture(pod.spec.annotations) and not pod.guest,
        exclusions=exclusions_of(pod.spec.annotations),
    )
