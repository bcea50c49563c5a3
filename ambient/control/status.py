"""``status``: who is attached, what is enrolled, which certificates hold until when. No I/O."""

from __future__ import annotations

from typing import Any

from ambient.control.cluster import Cluster
from ambient.control.distribution import connected
from ambient.control.pods import Pod
from ambient.control.views import attestation_view, is_enrolled, shown_mode, timestamp
from ambient.control.waypoints_plan import USE_WAYPOINT
from ambient.model.enrollment import DATAPLANE_MODE, NAMESPACE_INJECTION
from ambient.model.objects import Object


def status(cluster: Cluster) -> dict[str, Any]:
    """Return the state of the control plane as plain data."""
    registry = cluster.registry()
    return {
        "version": registry.version,
        "counts": {
            "workloads": len(registry.workloads),
            "services": len(registry.services),
            "policies": len(registry.policies),
        },
        "links": [_node(cluster, name) for name in cluster.nodes],
        "daemons": [
            {
                "daemon": str(link.peer),
                "synchronised": link.has_applied(registry.version),
                "stuck": link.stuck,
                "error": link.error,
            }
            for link in cluster.distribution.links()
        ],
        "namespaces": [_namespace(cluster, each) for each in cluster.store.of_kind("Namespace")],
        "certificates": [
            {
                "identity": str(identity),
                "node": holder.node,
                "holder": str(holder),
                "not_after": timestamp(until),
            }
            for (holder, identity), until in cluster.issuer.expiries().items()
        ],
    }


def _node(cluster: Cluster, name: str) -> dict[str, Any]:
    links = cluster.distribution.links()
    return {
        "name": name,
        "agent": connected(links, "agent", lambda peer: peer.node == name),
        "ztunnel": connected(links, "ztunnel", lambda peer: peer.node == name),
        "attestation": attestation_of_node(cluster, name),
    }


def attestation_of_node(cluster: Cluster, name: str) -> dict[str, Any] | None:
    """What the node's agent attests; None while nobody does."""
    found = cluster.agents.attestation(name)
    if found is None:
        return None
    age = round(cluster.clock() - found.heard, 1)
    counts = {"enrolled": found.enrolled, "lost": found.lost, "checks": found.checks}
    return {**counts, "repairs": found.repairs, "age_seconds": age}


def _namespace(cluster: Cluster, namespace: Object) -> dict[str, Any]:
    pods = [pod for pod in cluster.pods() if pod.namespace == namespace.name]
    labels = namespace.labels
    injected = labels.get(NAMESPACE_INJECTION) == "enabled"
    mode = "sidecar" if injected else labels.get(DATAPLANE_MODE, "none")
    return {
        "name": namespace.name,
        "mode": mode,
        "waypoint": labels.get(USE_WAYPOINT, ""),
        "pods": len(pods),
        "ready": sum(1 for pod in pods if pod.ready),
        "enrolled": sum(1 for pod in pods if is_enrolled(pod)),
        "states": [_pod(cluster, pod) for pod in pods],
    }


def _pod(cluster: Cluster, pod: Pod) -> dict[str, Any]:
    shown = {"name": pod.name, "mode": shown_mode(cluster, pod).value, "enrolled": is_enrolled(pod)}
    state = "draining" if pod.capture.draining else pod.capture.phase.value
    return {**shown, "state": state, "reason": pod.capture.reason, **attestation_view(cluster, pod)}
