"""The mesh as an index: what is found, what wins, what is forgotten."""

from __future__ import annotations

from ambient.model.mesh import Change
from ambient.model.policy import Action, Policy, Scope, deny_all
from ambient.model.workload import Protocol
from tests.meshes import API, DB, mesh_of, service, workload


def policy(key: str, scope: Scope) -> Policy:
    return Policy(key=key, namespace=key.partition("/")[0], action=Action.ALLOW, scope=scope)


def test_everything_is_found_by_its_names() -> None:
    """The lookups of the data path."""
    pod, api = workload("api-1", "10.0.0.1", "fd00::1", serves=API), service("api", "10.96.0.1")
    mesh = mesh_of(pod, api)

    assert mesh.workload(pod.uid) is pod
    assert mesh.workload_by_address("fd00::1") is pod
    assert mesh.workload_by_address("10.0.0.9") is None
    assert mesh.service(API) is api
    assert mesh.service_by_address("10.96.0.1") is api
    assert mesh.service_by_address("10.96.0.2") is None
    assert mesh.endpoints(API) == (pod,)
    assert mesh.endpoints(DB) == ()
    assert repr(mesh) == "<Mesh 1 workloads, 1 services, 0 policies, version 1>"


def test_a_service_answers_to_the_names_a_resolver_completes() -> None:
    """Clients write short names; the search path of their pod makes them whole."""
    mesh = mesh_of(service("api", "10.96.0.1"))

    for name in ("api", "api.shop", "api.shop.svc", "API.shop.svc.cluster.local."):
        assert mesh.service_by_hostname(name, "shop") is mesh.service(API), name
    for name in ("api", "api.other", "api.shop.pod", "a.b.c.d"):
        assert mesh.service_by_hostname(name, "other") is None, name


def test_the_own_namespace_wins_among_services_of_one_address() -> None:
    """Two services may share an external address."""
    ours, theirs = service("b", "1.1.1.1"), service("a", "1.1.1.1", namespace="other")
    mesh = mesh_of(ours, theirs)

    assert mesh.service_by_address("1.1.1.1", "shop") is ours
    assert mesh.service_by_address("1.1.1.1", "third") is theirs
    mesh.apply(Change(removed_services=(theirs.key,)))
    assert mesh.service_by_address("1.1.1.1", "third") is ours


def test_a_restarted_pod_replaces_its_old_record() -> None:
    """While both are known, an address means the one that can answer."""
    old = workload("api-1", "10.0.0.1", number=9)
    new = workload("api-1", "10.0.0.1", number=10)
    mesh = mesh_of(old, new)

    assert mesh.workload_by_address("10.0.0.1") is new
    unready = workload("api-1", "10.0.0.1", number=10, healthy=False)
    mesh.apply(Change(workloads=(unready,)))
    assert mesh.workload_by_address("10.0.0.1") is old
    mesh.apply(Change(removed_workloads=(old.uid, "nobody")))
    assert mesh.workload_by_address("10.0.0.1") is unready


def test_an_enrolled_workload_wins_an_address() -> None:
    """Plaintext to a stale record would be refused, or worse, accepted."""
    plain = workload("b", "10.0.0.1", protocol=Protocol.TCP)
    mesh = mesh_of(plain, workload("a", "10.0.0.1"))

    found = mesh.workload_by_address("10.0.0.1")

    assert found is not None
    assert found.name == "a"


def test_pods_on_the_hosts_network_are_not_found_by_its_address() -> None:
    """The node's address is not theirs alone."""
    shared = workload("agent", "192.168.0.1", host_network=True, serves=API)
    mesh = mesh_of(shared, service("api"))

    assert mesh.workload_by_address("192.168.0.1") is None
    assert mesh.endpoints(API) == (shared,)
    mesh.apply(Change(removed_workloads=(shared.uid,)))
    assert mesh.endpoints(API) == ()


def test_only_healthy_endpoints_that_serve_the_port_are_targets() -> None:
    """Load balancing picks among those that can answer."""
    good = workload("a", "10.0.0.1", serves=API, target=9090)
    mesh = mesh_of(
        good,
        workload("b", "10.0.0.2", serves=API, healthy=False),
        workload("c", "10.0.0.3", serves=API, port=81),
        workload("d", serves=API),
        service("api", "10.96.0.1"),
    )

    assert mesh.targets(API, 80) == ((good, 9090),)
    assert mesh.targets(API, 80) is mesh.targets(API, 80)
    assert mesh.targets(API, 5) == ()


def test_policies_come_from_mesh_namespace_and_selector() -> None:
    """A workload is guarded by all that select it, and by no other."""
    root, ours = policy("istio-system/a", Scope.GLOBAL), policy("shop/b", Scope.NAMESPACE)
    theirs, named = policy("other/c", Scope.NAMESPACE), policy("shop/d", Scope.WORKLOAD)
    mesh = mesh_of(root, ours, theirs, named)

    assert mesh.policies_for(workload("a", policies=("shop/d",))) == (root, ours, named)
    assert mesh.policies_for(workload("a")) == (root, ours)
    assert mesh.policies_for(workload("w", waypoint_for=API)) == ()
    mesh.apply(Change(removed_policies=("shop/b", "shop/none")))
    assert mesh.policies_for(workload("a")) == (root,)


def test_a_policy_that_is_named_and_unknown_refuses() -> None:
    """Istio's ztunnel skips it, which leaves the door open while it is on its way."""
    assert mesh_of().policies_for(workload("a", policies=("shop/d",))) == (deny_all("shop/d"),)


def test_a_snapshot_forgets_what_it_does_not_name() -> None:
    """After a reconnect, what was deleted meanwhile is gone."""
    mesh = mesh_of(workload("a", "10.0.0.1", serves=API), service("api", "10.96.0.1"))

    mesh.apply(Change(snapshot=True))

    assert mesh.snapshot() == Change(snapshot=True)
    assert mesh.workload_by_address("10.0.0.1") is None
    assert mesh.service_by_address("10.96.0.1") is None
    assert mesh.service_by_hostname("api", "shop") is None
    assert mesh.endpoints(API) == ()
    assert mesh.version == 2


def test_an_address_of_two_nodes_means_the_asking_ones_pod() -> None:
    """Overlapping pod networks; who has no such pod gets the one that is preferred otherwise."""
    one, two = (
        workload(f"api-{number}", "10.99.0.5", node=f"node-{number}", protocol=Protocol.HBONE)
        for number in (1, 2)
    )
    mesh = mesh_of(one, two)

    assert mesh.workload_by_address("10.99.0.5", "node-1") == one
    assert mesh.workload_by_address("10.99.0.5", "node-2") == two
    assert mesh.workload_by_address("10.99.0.5", "node-3") == two
    mesh.apply(Change(removed_workloads=(one.uid,)))
    assert mesh.workload_by_address("10.99.0.5", "node-1") == two
