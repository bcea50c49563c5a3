"""authz check: the way, the layer and the rule, as they would happen."""

from __future__ import annotations

import pytest

from ambient.model.explain import Explanation, authz_check
from ambient.model.mesh import Change
from ambient.model.policy import Action, Match, Policy, Rule, Scope, StringMatch, Verdict
from ambient.model.service import Service
from ambient.model.workload import Protocol, Workload
from tests.meshes import API, WAYPOINT, mesh_of, service, workload

VIA = "shop/via.shop.svc.cluster.local"


def names(*values: str) -> tuple[StringMatch, ...]:
    return tuple(StringMatch.parse(value) for value in values)


def policy(name: str, action: Action, *rules: Rule, scope: Scope = Scope.NAMESPACE) -> Policy:
    return Policy(key=f"shop/{name}", namespace="shop", action=action, scope=scope, rules=rules)


CLIENT = workload("client", "10.0.0.9", node="node-2")
PLAIN = workload("plain", "10.0.0.8", protocol=Protocol.TCP)
SIDE = workload("side", "10.0.0.7", protocol=Protocol.ISTIO_MTLS)
CAR = workload("car", "10.0.0.6", protocol=Protocol.ISTIO_MTLS)
API_POD = workload("api-1", "10.0.0.1", "fd00::1", serves=API)
WAY = workload("waypoint", "10.0.0.5", serves=WAYPOINT, waypoint_for=WAYPOINT, port=15008)
VIA_POD = workload("via-1", "10.0.0.4", serves=VIA)
BARE = workload("bare")

STRICT = policy("strict", Action.DENY, ((Match(not_principals=names("*")),),))
NO_CLIENT = policy("no-client", Action.DENY, ((Match(principals=names("*/sa/client")),),))
API_SERVICE = service("api", "10.96.0.1")
VIA_SERVICE = service("via", "10.96.0.2", waypoint=WAYPOINT)
EMPTY = service("empty", "10.96.0.3")
THINGS = (CLIENT, PLAIN, SIDE, CAR, API_POD, WAY, VIA_POD, BARE, API_SERVICE, VIA_SERVICE, EMPTY)

OPEN = Verdict(True, "no allow policy guards the workload")
DENIED = Verdict(False, "explicitly denied by: shop/no-client", "shop/no-client")
NOT_STRICT = Verdict(False, "explicitly denied by: shop/strict", "shop/strict")
CASES: dict[str, tuple[Workload, Workload | Service, Verdict, str, tuple[str, ...]]] = {
    "ambient": (
        *(CLIENT, API_SERVICE, DENIED, "ztunnel"),
        ("shop/client", "ztunnel/node-2", "ztunnel/node-1", "shop/api-1"),
    ),
    "ambient-pod": (
        *(CLIENT, API_POD, DENIED, "ztunnel"),
        ("shop/client", "ztunnel/node-2", "ztunnel/node-1", "shop/api-1"),
    ),
    "through-waypoint": (
        *(CLIENT, VIA_SERVICE, OPEN, "ztunnel"),
        ("shop/client", "ztunnel/node-2", "waypoint shop/waypoint", "ztunnel/node-1", "shop/via-1"),
    ),
    "plain-source": (
        *(PLAIN, API_SERVICE, NOT_STRICT, "ztunnel"),
        ("shop/plain", "ztunnel/node-1", "shop/api-1"),
    ),
    "plain-source-pod": (
        *(PLAIN, API_POD, NOT_STRICT, "ztunnel"),
        ("shop/plain", "ztunnel/node-1", "shop/api-1"),
    ),
    "plain-both": (
        *(PLAIN, PLAIN),
        Verdict(True, "the destination is not enrolled: nobody enforces policy"),
        *("none", ("shop/plain", "shop/plain")),
    ),
    "sidecars": (
        *(SIDE, CAR, OPEN, "sidecar"),
        ("shop/side", "sidecar shop/side", "sidecar shop/car", "shop/car"),
    ),
    "sidecar-to-ambient": (
        *(SIDE, API_POD, OPEN, "ztunnel"),
        ("shop/side", "sidecar shop/side", "ztunnel/node-1", "shop/api-1"),
    ),
    "ambient-to-sidecar": (
        *(CLIENT, CAR, NOT_STRICT, "sidecar"),
        ("shop/client", "ztunnel/node-2", "sidecar shop/car", "shop/car"),
    ),
    "no-endpoint": (
        *(CLIENT, EMPTY, Verdict(False, "no healthy upstream: 10.96.0.3:80"), "route"),
        ("shop/client", "ztunnel/node-2"),
    ),
    "plain-no-endpoint": (
        *(PLAIN, EMPTY, Verdict(False, "no healthy upstream: 10.96.0.3:80"), "route"),
        ("shop/plain",),
    ),
    "no-address": (*(CLIENT, BARE, Verdict(False, "bare has no address"), "route"), ("shop/client",)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_explanation_is_what_would_happen(
    case: tuple[Workload, Workload | Service, Verdict, str, tuple[str, ...]],
) -> None:
    """With a waypoint in the way the destination sees the waypoint; without mTLS it sees nobody."""
    source, destination, verdict, layer, path = case
    mesh = mesh_of(*THINGS, STRICT, NO_CLIENT)

    found = authz_check(mesh, source, destination, 80)

    assert found == Explanation(verdict=verdict, policy=verdict.policy, layer=layer, path=path)


def test_the_waypoints_identity_is_what_policy_sees() -> None:
    """The commonest surprise of ambient: a policy for the client must name the waypoint."""
    only_client = policy("p", Action.ALLOW, ((Match(principals=names("*/sa/client")),),))
    only_waypoint = policy("p", Action.ALLOW, ((Match(principals=names("*/sa/waypoint")),),))

    assert not authz_check(mesh_of(*THINGS, only_client), CLIENT, VIA_SERVICE, 80).verdict.allowed
    assert authz_check(mesh_of(*THINGS, only_waypoint), CLIENT, VIA_SERVICE, 80).policy == "shop/p"


def test_an_address_that_nobody_owns_is_outside() -> None:
    """A pod on the host's network is not found by its address."""
    host = workload("host", "192.168.0.1", host_network=True)

    found = authz_check(mesh_of(CLIENT, host), CLIENT, host, 80)

    assert found.verdict == Verdict(True, "the destination is not in the mesh: nobody enforces policy")
    assert (found.layer, found.path[-1]) == ("none", "192.168.0.1")


def test_a_headless_service_is_its_endpoints() -> None:
    """Its name resolves to pod addresses."""
    headless = service("api")
    mesh = mesh_of(CLIENT, API_POD, headless)

    assert authz_check(mesh, CLIENT, headless, 8080).path[-1] == "shop/api-1"
    mesh.apply(Change(removed_workloads=(API_POD.uid,)))
    assert authz_check(mesh, CLIENT, headless, 8080).verdict.reason == "api has no address"


def test_endpoints_that_differ_are_counted() -> None:
    """One pod of three with its own policy fails a third of the connections."""
    closed = workload("api-2", "10.0.0.2", serves=API, policies=("shop/gone",))
    mesh = mesh_of(CLIENT, API_POD, closed, API_SERVICE)

    found = authz_check(mesh, CLIENT, API_SERVICE, 80)

    assert found.verdict.reason == "explicitly denied by: shop/gone (at 1 of 2 endpoints)"
    assert found.policy == "shop/gone"


def test_the_proxys_own_ports_are_nobodys_target() -> None:
    """A tunnel to 15006 would come back to the proxy that sent it."""
    found = authz_check(mesh_of(CLIENT, API_POD), CLIENT, API_POD, 15006)

    assert found.verdict == Verdict(False, "attempted recursive call to ourselves: port 15006")
    assert found.layer == "ztunnel"
