"""What `get` shows: objects and pods in Kubernetes' shapes, with what the mesh adds under `status.ambient`.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ambient.control.capture_plan import Phase
from ambient.control.cluster import Cluster
from ambient.control.pods import Pod, Role
from ambient.control.store_plan import Entry
from ambient.model.enrollment import Mode, why_not
from ambient.wire.values import to_wire


def timestamp(seconds: float) -> str | None:
    """Unix seconds as Kubernetes writes them; None for 0."""
    if not seconds:
        return None
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def object_view(cluster: Cluster, entry: Entry) -> dict[str, Any]:
    """One stored object."""
    obj = entry.object
    metadata = {"creationTimestamp": timestamp(entry.created), **dict(obj.body.get("metadata") or {})}
    view = {**obj.body, "metadata": metadata}
    match obj.kind:
        case "Namespace":
            view["status"] = {"phase": "Active"}
        case "Service":
            view["spec"] = {**obj.spec, **_service_addresses(cluster, entry)}
        case "Deployment":
            view["status"] = _deployment_status(cluster, entry)
        case "Gateway":
            view["status"] = _gateway_status(cluster, entry)
    return view


def pod_view(cluster: Cluster, pod: Pod) -> dict[str, Any]:
    """One pod."""
    metadata: dict[str, Any] = {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid}
    metadata |= {"labels": dict(pod.labels), "annotations": dict(pod.spec.annotations)}
    metadata["creationTimestamp"] = timestamp(pod.status.started)
    kind, _, owner = pod.owner.partition("/")
    if kind != "Pod":
        metadata["ownerReferences"] = [{"kind": kind, "name": owner}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": _pod_spec(pod),
        "status": _pod_status(cluster, pod),
    }


def ambient_status(cluster: Cluster, pod: Pod) -> dict[str, Any]:
    """What the mesh does with a pod; *mode* is what it is asked to be in, *enrolled* whether it is."""
    mode = shown_mode(cluster, pod)
    workload = cluster.registry().workloads.get(pod.uid)
    service = next(iter(workload.services), "") if workload else ""
    served = cluster.registry().services.get(service)
    return {
        "mode": mode.value,
        "enrolled": is_enrolled(pod),
        "state": "draining" if pod.capture.draining else pod.capture.phase.value,
        "reason": pod.capture.reason or pod.status.reason or _why_not(cluster, pod),
        **attestation_view(cluster, pod),
        "uid": pod.uid,
        "pid": pod.status.pid,
        "netns": pod.status.netns,
        "protocol": workload.protocol.value if workload else "TCP",
        "waypoint": (workload.waypoint if workload else "") or (served.waypoint if served else ""),
        "role": pod.role.value,
    }


def attestation_view(cluster: Cluster, pod: Pod) -> dict[str, Any]:
    """Whether somebody vouches for the pod's enrollment, and what passes it by.

    ``attestation`` is ``"attested"``, ``"lost"``, ``"unattested"`` (enrolled, as far as anybody knows: its
    node's agent is silent), or "" for a pod that nobody captures.
    """
    plaintext = cluster.agents.plaintext(pod)
    words = {"repairs": pod.capture.repairs, "plaintext_connections": plaintext}
    match pod.capture.phase:
        case Phase.IN | Phase.LEAVING:
            there = cluster.agents.attestation(pod.node) is not None
            return {"attestation": "attested" if there else "unattested", **words}
        case Phase.LOST:
            return {"attestation": "lost", **words}
        case _:
            return {"attestation": "", **words}


def shown_mode(cluster: Cluster, pod: Pod) -> Mode:
    """The mode a pod is in or on its way to."""
    if pod.mode is Mode.SIDECAR:
        return Mode.SIDECAR
    wanted = cluster.desired(pod) is Mode.AMBIENT
    return Mode.AMBIENT if wanted or pod.capture.phase is Phase.IN else Mode.NONE


def is_enrolled(pod: Pod) -> bool:
    """Whether its traffic is carried by the mesh now."""
    if pod.mode is Mode.SIDECAR:
        return pod.ready
    return pod.capture.phase is Phase.IN


def _why_not(cluster: Cluster, pod: Pod) -> str:
    above = cluster.store.labels_of_namespace(pod.namespace)
    waypoint = pod.role is Role.WAYPOINT
    return why_not(above, pod.labels, host_network=pod.spec.host_network, is_waypoint=waypoint)


def _pod_spec(pod: Pod) -> dict[str, Any]:
    containers = [
        {
            "name": each.name,
            "ports": [{"containerPort": port.number, "name": port.name} for port in each.ports],
        }
        | ({"command": list(each.command)} if each.command else {})
        | ({"args": list(each.args)} if each.args else {})
        for each in pod.spec.containers
    ]
    named = {"nodeName": pod.node, "serviceAccountName": pod.spec.service_account}
    return {**named, "hostNetwork": pod.spec.host_network, "containers": containers}


def _pod_status(cluster: Cluster, pod: Pod) -> dict[str, Any]:
    status = pod.status
    return {
        "phase": status.phase,
        "reason": status.reason,
        "podIP": pod.addresses[0] if pod.addresses else "",
        "podIPs": [{"ip": address} for address in pod.addresses],
        "hostIP": cluster.book.of_node(pod.node)[0],
        "startTime": timestamp(status.started),
        "conditions": [{"type": "Ready", "status": "True" if pod.ready else "False"}],
        "containerStatuses": [_container(each) for each in status.containers],
        "ambient": ambient_status(cluster, pod),
    }


def _container(status: Mapping[str, Any]) -> dict[str, Any]:
    shown = {"name": status.get("name", ""), "ready": bool(status.get("ready"))}
    return {**shown, "restartCount": status.get("restarts", 0), "pid": status.get("pid", 0)}


def _service_addresses(cluster: Cluster, entry: Entry) -> dict[str, Any]:
    obj = entry.given
    service = next(
        (
            s
            for s in cluster.registry().services.values()
            if (s.namespace, s.name) == (obj.namespace, obj.name)
        ),
        None,
    )
    if service is None or not service.addresses:
        return {}
    return {"clusterIP": service.addresses[0], "clusterIPs": list(service.addresses)}


def _deployment_status(cluster: Cluster, entry: Entry) -> dict[str, Any]:
    owner = f"Deployment/{entry.given.name}"
    mine = [p for p in cluster.pods() if p.owner == owner and p.namespace == entry.given.namespace]
    return {"replicas": len(mine), "readyReplicas": sum(1 for pod in mine if pod.ready)}


def _gateway_status(cluster: Cluster, entry: Entry) -> dict[str, Any]:
    found = cluster.waypoints().get((entry.given.namespace, entry.given.name))
    programmed = "True" if found and found.programmed else "False"
    return {"conditions": [{"type": "Programmed", "status": programmed}]}


def dump(cluster: Cluster) -> dict[str, Any]:
    """What every daemon is told."""
    registry = cluster.registry()
    return {
        "version": registry.version,
        "workloads": [_plain(to_wire(each)) for each in registry.workloads.values()],
        "services": [_plain(to_wire(each)) for each in registry.services.values()],
        "policies": [_plain(to_wire(each)) for each in registry.policies.values()],
    }


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """A workload's ports as people read them: ``{service: {"80": 8080}}``."""
    if isinstance(value.get("services"), dict):
        ports = {key: {str(a): b for a, b in pairs} for key, pairs in value["services"].items()}
        return {**value, "services": ports}
    return value
