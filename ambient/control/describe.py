"""``describe``: the way of a connection to a pod or a service, step by step, and why a pod is not enrolled.

Pure, given the cluster: the steps are what the registry says, the policies those that the model would ask.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ambient.control.cluster import Cluster
from ambient.control.params import take
from ambient.control.pods import Pod
from ambient.control.registry_plan import change_between
from ambient.control.views import ambient_status
from ambient.engine.rpc import FAILED, RpcError
from ambient.model.enrollment import Mode
from ambient.model.exclusions import Exclusions, exclusions_of
from ambient.model.explain import refuses_strangers
from ambient.model.mesh import Mesh
from ambient.model.service import Service
from ambient.model.workload import Workload
from ambient.wire.values import to_wire

# Who enforces layer 4 policy, by the mode of the destination.
_ENFORCER = {Mode.AMBIENT.value: "ztunnel", Mode.SIDECAR.value: "sidecar"}


def describe(cluster: Cluster, params: Mapping[str, Any]) -> dict[str, Any]:
    """Answer the call.

    Raises:
        RpcError: there is no such pod or service.
    """
    target = take(params, "kind", str).lower()
    namespace, name = take(params, "namespace", str), take(params, "name", str)
    mesh = Mesh()
    mesh.apply(change_between(None, cluster.registry()))
    if target == "service":
        return describe_service(cluster, mesh, _service(mesh, namespace, name))
    pod = cluster.pod(namespace, name) or _of_deployment(cluster, namespace, name)
    if pod is None:
        raise RpcError(FAILED, f"no pod {name!r} in namespace {namespace!r}; see: ambient get pods -A")
    return describe_pod(cluster, mesh, pod)


def describe_pod(cluster: Cluster, mesh: Mesh, pod: Pod) -> dict[str, Any]:
    """Everything about one pod."""
    state = ambient_status(cluster, pod)
    workload = mesh.workload(pod.uid)
    policies = _policies(mesh, workload, _ENFORCER.get(state["mode"], "nobody"))
    services = [mesh.service(key) for key in workload.services] if workload else []
    known = [each for each in services if each is not None]
    return {
        "object": "pod",
        "namespace": pod.namespace,
        "name": pod.name,
        "node": pod.node,
        "addresses": list(pod.addresses),
        "identity": str(pod.identity),
        "mode": state["mode"],
        "enrolled": state["enrolled"],
        "state": state["state"],
        "reason": "" if state["enrolled"] else state["reason"],
        "attestation": state["attestation"],
        "repairs": state["repairs"],
        "plaintext_connections": state["plaintext_connections"],
        "strict": workload is not None and refuses_strangers(mesh, workload),
        "exclusions": _exclusions(exclusions_of(pod.spec.annotations)),
        "services": [f"{each.namespace}/{each.name}" for each in known],
        "policies": policies,
        "way": [
            _capture(state),
            _hbone(state, workload),
            _waypoint(workload, known),
            _enforced(policies, state["enrolled"]),
        ],
    }


def describe_service(cluster: Cluster, mesh: Mesh, service: Service) -> dict[str, Any]:
    """One service: what becomes of a connection to it, and each of its endpoints."""
    endpoints = [_endpoint(cluster, each) for each in mesh.endpoints(service.key)]
    enrolled = sum(1 for each in endpoints if each["enrolled"])
    captured = f"{enrolled} of {len(endpoints)} endpoints are enrolled"
    detail = f"requests pass {_short(service.waypoint)}" if service.waypoint else "no waypoint serves it"
    return {
        "object": "service",
        "namespace": service.namespace,
        "name": service.name,
        "hostname": service.hostname,
        "addresses": list(service.addresses),
        "ports": [{"port": each.port, "target_port": each.target_port} for each in service.ports],
        "waypoint": _short(service.waypoint),
        "endpoints": endpoints,
        "way": [
            _step("capture", enrolled == len(endpoints) > 0, captured),
            _step("HBONE", enrolled > 0, "to the endpoints that are enrolled; to others in plaintext"),
            _step("waypoint", bool(service.waypoint), detail),
            _step("policies", enrolled > 0, "enforced where the connection arrives; see: describe pod/..."),
        ],
    }


def _capture(state: Mapping[str, Any]) -> dict[str, Any]:
    if state["mode"] == Mode.SIDECAR.value:
        return _step("capture", True, "by the sidecar in the pod")
    if not state["enrolled"]:
        return _step("capture", False, state["reason"] or f"it is {state['state']}")
    words = f"by ztunnel, {state['attestation']}"
    if state["repairs"]:
        words += f", repaired {state['repairs']} times"
    if plain := state["plaintext_connections"]:
        words += f"; {plain} connections are older than that, and plaintext until they end"
    return _step("capture", True, words)


def _hbone(state: Mapping[str, Any], workload: Workload | None) -> dict[str, Any]:
    protocol = workload.protocol.value if workload else "TCP"
    words = {
        "HBONE": "peers reach it by HBONE on port 15008",
        "ISTIO_MTLS": "peers with sidecars reach its sidecar by mutual TLS; ztunnels by plaintext",
    }
    return _step("HBONE", protocol == "HBONE", words.get(protocol, "peers reach it in plaintext"))


def _waypoint(workload: Workload | None, services: list[Service]) -> dict[str, Any]:
    named = [(f"service {each.name}", each.waypoint) for each in services if each.waypoint]
    if workload is not None and workload.waypoint:
        named.append(("the pod's own address", workload.waypoint))
    detail = "; ".join(f"{_short(key)} for {what}" for what, key in named)
    return _step("waypoint", bool(named), detail or "none: nothing looks at requests")


def _enforced(policies: list[dict[str, Any]], enrolled: bool) -> dict[str, Any]:
    if not policies:
        return _step("policies", False, "none selects it")
    names = ", ".join(f"{each['action']} {each['name']}" for each in policies)
    return _step(
        "policies", enrolled, names if enrolled else f"not enforced while it is not enrolled: {names}"
    )


def _step(name: str, holds: bool, detail: str) -> dict[str, Any]:
    return {"step": name, "holds": holds, "detail": detail}


def _policies(mesh: Mesh, workload: Workload | None, enforcer: str) -> list[dict[str, Any]]:
    found = mesh.policies_for(workload) if workload is not None else ()
    return [
        {
            "name": each.key,
            "action": each.action.name,
            "scope": each.scope.name.lower(),
            "enforced_by": enforcer,
        }
        for each in sorted(found, key=lambda each: each.key)
    ]


def _exclusions(found: Exclusions) -> dict[str, Any]:
    return {name: list(value) for name, value in to_wire(found).items() if value}


def _endpoint(cluster: Cluster, workload: Workload) -> dict[str, Any]:
    pod = cluster.pod(workload.namespace, workload.name)
    state = ambient_status(cluster, pod) if pod is not None else {"enrolled": False, "reason": ""}
    return {
        "pod": f"{workload.namespace}/{workload.name}",
        "node": workload.node,
        "protocol": workload.protocol.value,
        "enrolled": state["enrolled"],
        "reason": "" if state["enrolled"] else state["reason"],
    }


def _service(mesh: Mesh, namespace: str, name: str) -> Service:
    for each in mesh.services():
        if (each.namespace, each.name) == (namespace, name):
            return each
    raise RpcError(FAILED, f"no service {name!r} in namespace {namespace!r}; see: ambient get services -A")


def _of_deployment(cluster: Cluster, namespace: str, name: str) -> Pod | None:
    mine = (pod for pod in cluster.pods() if pod.namespace == namespace)
    return next((pod for pod in mine if pod.owner.partition("/")[2] == name), None)


def _short(key: str) -> str:
    """``bookinfo/waypoint`` of a service's key."""
    namespace, _, hostname = key.partition("/")
    return f"{namespace}/{hostname.partition('.')[0]}" if hostname else ""
