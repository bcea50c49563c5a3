"""Which pods there are to be. Pure: from Deployments, Pods and waypoint Gateways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ambient.control.names_plan import replica_names, template_hash
from ambient.control.pods import Guest, Role
from ambient.control.store_plan import Store
from ambient.control.waypoints_plan import GATEWAY_NAME, is_waypoint
from ambient.model.enrollment import DATAPLANE_MODE
from ambient.model.objects import Object
from ambient.model.podspec import Container, PodSpec, pod_spec

ENGINE_ANNOTATION = "ambient.dev/engine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One pod that is to run.

    Attributes:
        owner: ``kind/name`` of what it belongs to.
        guest: Where it is already, if somebody else made it.
    """

    namespace: str
    name: str
    owner: str
    spec: PodSpec
    role: Role = Role.APP
    engine: str = ""
    guest: Guest | None = None


def wanted_pods(store: Store) -> tuple[Wanted, ...]:
    """Return every pod that *store* asks for, in a stable order.

    Raises:
        ConfigError: an object describes no pod that can run.
    """
    pods = [_bare(each) for each in store.of_kind("Pod")]
    for deployment in store.of_kind("Deployment"):
        pods += _replicas(deployment)
    pods += [_waypoint(each) for each in store.of_kind("Gateway") if is_waypoint(each)]
    return tuple(pods)


def _bare(pod: Object) -> Wanted:
    return Wanted(namespace=pod.namespace, name=pod.name, owner=f"Pod/{pod.name}", spec=pod_spec(pod))


def _replicas(deployment: Object) -> list[Wanted]:
    replicas = deployment.spec.get("replicas", 1)
    if replicas is None:
        replicas = 1
    template: dict[str, Any] = dict(deployment.spec.get("template") or {})
    spec = pod_spec(deployment)
    names = replica_names(deployment.namespace, deployment.name, template_hash(template), replicas)
    owner = f"Deployment/{deployment.name}"
    return [Wanted(namespace=deployment.namespace, name=name, owner=owner, spec=spec) for name in names]


def _waypoint(gateway: Object) -> Wanted:
    """The pod of a waypoint: its service account is called like the Gateway, as Istio's is."""
    engine = gateway.annotations.get(ENGINE_ANNOTATION, "ambient")
    hashed = template_hash({"spec": gateway.spec, "engine": engine})
    (name,) = replica_names(gateway.namespace, gateway.name, hashed, 1)
    spec = PodSpec(
        containers=(Container(name="istio-proxy"),),
        service_account=gateway.name,
        labels={GATEWAY_NAME: gateway.name, DATAPLANE_MODE: "none", "app": gateway.name},
    )
    return Wanted(
        namespace=gateway.namespace,
        name=name,
        owner=f"Gateway/{gateway.name}",
        spec=spec,
        role=Role.WAYPOINT,
        engine=engine,
    )
