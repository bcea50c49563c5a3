"""What a name means in the cluster: the name server's decisions.

Pure. Names are those of the Kubernetes DNS specification 1.1: ``SERVICE.NAMESPACE.svc.cluster.local``
(virtual addresses, or the pods' addresses of a headless service), ``POD.SERVICE.NAMESPACE.svc…`` for pods
behind a headless service, ``10-244-1-5.NAMESPACE.pod.cluster.local``. Short names are the resolver's work,
by its search list.
"""

from __future__ import annotations

from ambient.model.mesh import Mesh
from ambient.model.service import CLUSTER_DOMAIN, Service
from ambient.model.workload import Workload
from ambient.wire.dns import TYPE_A, TYPE_AAAA, Answer, Query, Rcode

_NXDOMAIN = Answer(Rcode.NXDOMAIN)


def answer(mesh: Mesh, query: Query) -> Answer | None:
    """Answer *query* from the mesh; None: not a name of the cluster, ask elsewhere."""
    if query.opcode != 0:
        return Answer(Rcode.NOTIMP)
    suffix = f".{CLUSTER_DOMAIN}"
    if not query.name.endswith(suffix):
        return None
    match query.name.removesuffix(suffix).split("."):
        case [name, namespace, "svc"]:
            found = _of_service(mesh, name, namespace)
        case [host, name, namespace, "svc"]:
            found = _of_pod_behind(mesh, host, name, namespace)
        case [dashed, namespace, "pod"]:
            found = _of_pod_address(mesh, dashed, namespace)
        case _:
            found = None
    return _NXDOMAIN if found is None else _of_kind(found, query.kind)


def _of_kind(addresses: tuple[str, ...], kind: int) -> Answer:
    # Without an address of this family: NOERROR, empty. NXDOMAIN would end the search for the other family.
    wanted = {TYPE_A: False, TYPE_AAAA: True}.get(kind)
    return Answer(Rcode.NOERROR, tuple(a for a in addresses if wanted is not None and (":" in a) is wanted))


def _service(mesh: Mesh, name: str, namespace: str) -> Service | None:
    return mesh.service(f"{namespace}/{name}.{namespace}.svc.{CLUSTER_DOMAIN}")


def _of_service(mesh: Mesh, name: str, namespace: str) -> tuple[str, ...] | None:
    service = _service(mesh, name, namespace)
    if service is None:
        return None
    if service.addresses:
        return service.addresses
    return tuple(address for pod in mesh.endpoints(service.key) for address in pod.addresses)


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
