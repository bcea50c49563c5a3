"""Which names exist in the cluster, and their addresses.

Floor 0. Names are those of the Kubernetes DNS specification 1.1: ``SERVICE.NAMESPACE.svc.cluster.local``
(virtual addresses, or the pods' addresses of a headless service), ``POD.SERVICE.NAMESPACE.svc…`` for pods
behind a headless service, ``10-244-1-5.NAMESPACE.pod.cluster.local``.
"""

from __future__ import annotations

from ambient.model.mesh import Mesh
from ambient.model.service import CLUSTER_DOMAIN, Service
from ambient.model.workload import Workload


def is_of_cluster(name: str) -> bool:
    """Whether nobody but the cluster may answer for *name*."""
    return name.endswith(f".{CLUSTER_DOMAIN}")


def addresses_of(mesh: Mesh, name: str) -> tuple[str, ...] | None:
    """The addresses of *name* (lower case, no last dot), of both families; None if there is no such name."""
    if not is_of_cluster(name):
        return None
    match name.removesuffix(f".{CLUSTER_DOMAIN}").split("."):
        case [service, namespace, "svc"]:
            found = _service(mesh, service, namespace)
            return None if found is None else addresses_of_service(mesh, found)
        case [host, service, namespace, "svc"]:
            return _of_pod_behind(mesh, host, service, namespace)
        case [dashed, namespace, "pod"]:
            return _of_pod_address(mesh, dashed, namespace)
        case _:
            return None


def addresses_of_service(mesh: Mesh, service: Service) -> tuple[str, ...]:
    """Its virtual addresses; those of its pods if it is headless."""
    if service.addresses:
        return service.addresses
    return tuple(address for pod in mesh.endpoints(service.key) for address in pod.addresses)


def of_family(addresses: tuple[str, ...], *, ipv6: bool) -> tuple[str, ...]:
    """Those of one family, in their order."""
    return tuple(each for each in addresses if (":" in each) is ipv6)


def _service(mesh: Mesh, name: str, namespace: str) -> Service | None:
    return mesh.service(f"{namespace}/{name}.{namespace}.svc.{CLUSTER_DOMAIN}")


def _of_pod_behind(mesh: Mesh, host: str, name: str, namespace: str) -> tuple[str, ...] | None:
    service = _service(mesh, name, namespace)
    if service is None or service.addresses:
        return None
    for pod in mesh.endpoints(service.key):
        if pod.name == host:
            return pod.addresses
    return None


def _of_pod_address(mesh: Mesh, dashed: str, namespace: str) -> tuple[str, ...] | None:
    pod = _pod_at(mesh, dashed.replace("-", ".")) or _pod_at(mesh, dashed.replace("-", ":"))
    return pod.addresses if pod is not None and pod.namespace == namespace else None


def _pod_at(mesh: Mesh, address: str) -> Workload | None:
    return mesh.workload_by_address(address)
