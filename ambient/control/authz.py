"""``authz check``: find the two ends that were named, and ask the model. Pure, given the cluster."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ambient.control.cluster import Cluster
from ambient.control.params import take
from ambient.control.pods import Pod
from ambient.control.registry_plan import change_between
from ambient.engine.rpc import FAILED, RpcError
from ambient.errors import ConfigError
from ambient.model.explain import authz_check
from ambient.model.mesh import Mesh
from ambient.model.service import Service
from ambient.model.workload import Workload


def check(cluster: Cluster, params: Mapping[str, Any]) -> dict[str, Any]:
    """Answer the call.

    Raises:
        RpcError: one end does not exist, or has no port to ask about.
    """
    source = _workload(cluster, _reference(params, "source"))
    destination = _destination(cluster, _reference(params, "destination"))
    port = take(params, "port", int, 0) or _default_port(cluster, destination)
    mesh = Mesh()
    mesh.apply(change_between(None, cluster.registry()))
    found = authz_check(mesh, source, destination, port)
    return {
        "allowed": found.verdict.allowed,
        "verdict": "ALLOW" if found.verdict.allowed else "DENY",
        "reason": found.verdict.reason,
        "policy": found.policy,
        "layer": found.layer,
        "path": list(found.path),
        "source": f"{source.namespace}/{source.name}",
        "destination": f"{destination.namespace}/{destination.name}",
        "port": port,
    }


def _reference(params: Mapping[str, Any], name: str) -> tuple[str, str, str]:
    match params.get(name):
        case {"kind": str(kind), "namespace": str(namespace), "name": str(called)}:
            return kind.lower(), namespace, called
        case _:
            raise ConfigError(f"{name!r} must be a kind, a namespace and a name")


def _workload(cluster: Cluster, reference: tuple[str, str, str]) -> Workload:
    kind, namespace, name = reference
    pod = _pod(cluster, namespace, name) if kind != "service" else None
    found = cluster.registry().workloads.get(pod.uid) if pod else None
    if found is None:
        raise RpcError(FAILED, f"no pod {name!r} in namespace {namespace!r}; see: ambient get pods -A")
    return found


def _destination(cluster: Cluster, reference: tuple[str, str, str]) -> Workload | Service:
    kind, namespace, name = reference
    services = cluster.registry().services.values()
    service = next((each for each in services if (each.namespace, each.name) == (namespace, name)), None)
    if kind == "service":
        if service is None:
            raise RpcError(FAILED, f"no service {name!r} in namespace {namespace!r}")
        return service
    if _pod(cluster, namespace, name) is None and service is not None:
        return service
    return _workload(cluster, reference)


def _pod(cluster: Cluster, namespace: str, name: str) -> Pod | None:
    """The pod of that name, or the first one of the Deployment of that name."""
    if pod := cluster.pod(namespace, name):
        return pod
    mine = (pod for pod in cluster.pods() if pod.namespace == namespace)
    return next((pod for pod in mine if pod.owner.partition("/")[2] == name), None)


def _default_port(cluster: Cluster, destination: Workload | Service) -> int:
    """The first port there is: people ask about services that have one."""
    if isinstance(destination, Service):
        ports = [each.port for each in destination.ports]
    else:
        pod = cluster.pod(destination.namespace, destination.name)
        ports = [port.number for each in pod.spec.containers for port in each.ports] if pod else []
    if not ports:
        raise RpcError(FAILED, f"{destination.name!r} names no port; give --port")
    return ports[0]
