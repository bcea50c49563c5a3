"""Small meshes for tests: a shop with an API, a database without a proxy, and a waypoint."""

from __future__ import annotations

from types import MappingProxyType

from ambient.model.mesh import Change, Mesh
from ambient.model.policy import Policy
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Protocol, Workload

API = "shop/api.shop.svc.cluster.local"
DB = "shop/db.shop.svc.cluster.local"
WAYPOINT = "shop/waypoint.shop.svc.cluster.local"


def service(
    name: str, *addresses: str, namespace: str = "shop", port: int = 80, waypoint: str = ""
) -> Service:
    """A service with one port."""
    return Service(
        name=name,
        namespace=namespace,
        hostname=f"{name}.{namespace}.svc.cluster.local",
        addresses=addresses,
        ports=(ServicePort(port=port, target_port=8080),),
        waypoint=waypoint,
    )


def workload(
    name: str,
    *addresses: str,
    namespace: str = "shop",
    protocol: Protocol = Protocol.HBONE,
    serves: str = "",
    port: int = 80,
    target: int = 8080,
    waypoint: str = "",
    waypoint_for: str = "",
    node: str = "node-1",
    policies: tuple[str, ...] = (),
    healthy: bool = True,
    host_network: bool = False,
    number: int = 1,
) -> Workload:
    """A workload whose service account has its name."""
    services = {serves: MappingProxyType({port: target})} if serves else {}
    return Workload(
        uid=f"Kubernetes//Pod/{namespace}/{name}#{number}",
        name=name,
        namespace=namespace,
        service_account=name,
        addresses=addresses,
        node=node,
        protocol=protocol,
        services=MappingProxyType(services),
        authorization_policies=policies,
        waypoint=waypoint,
        waypoint_for=waypoint_for,
        healthy=healthy,
        host_network=host_network,
    )


def mesh_of(*things: Workload | Service | Policy) -> Mesh:
    """A mesh that holds these."""
    mesh = Mesh()
    mesh.apply(
        Change(
            workloads=tuple(each for each in things if isinstance(each, Workload)),
            services=tuple(each for each in things if isinstance(each, Service)),
            policies=tuple(each for each in things if isinstance(each, Policy)),
            snapshot=True,
        )
    )
    return mesh
