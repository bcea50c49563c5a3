"""From objects and pods to workloads, services and policies."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.control.capture_plan import Capture, Phase
from ambient.control.pods import Pod, Role, Status
from ambient.control.pods_plan import wanted_pods
from ambient.control.resources_plan import services_of, workloads_of
from ambient.control.store_plan import Store
from ambient.control.waypoints_plan import Waypoint
from ambient.model.authorization import convert
from ambient.model.enrollment import Mode
from ambient.model.manifest import parse_manifests
from ambient.model.service import Service
from ambient.model.workload import HBONE_PORT, Protocol, Workload

KEY = "shop/api.shop.svc.cluster.local"
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec:
  selector: {app: api}
  ports:
  - {name: http-web, port: 80, targetPort: web}
  - {name: db, port: 5432}
  - {name: udp, port: 53, protocol: UDP}
  - {name: grpc, port: 90, targetPort: 9090}
  - {name: odd, port: 91, appProtocol: kubernetes.io/h2c}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, selector: {app: api}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: shop}
spec: {type: ExternalName, externalName: example.com}
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec: {ports: [{port: 80}]}
"""
POD = """
---
apiVersion: v1
kind: Pod
metadata: {name: api, namespace: shop, labels: {app: api, version: v2}}
spec:
  serviceAccountName: api
  containers: [{name: api, ports: [{name: web, containerPort: 8080}]}]
"""


def store(text: str) -> Store:
    return Store.fresh(0).apply(parse_manifests([("x.yaml", text)]).objects, 1.0)[0]


def pod(**changes: Any) -> Pod:
    (wanted,) = wanted_pods(store(POD))
    facts: dict[str, Any] = {
        "uid": "u",
        "namespace": "shop",
        "name": "api",
        "owner": "Pod/api",
        "node": "node-1",
        "addresses": ("10.244.1.2",),
        "spec": wanted.spec,
        "labels": dict(wanted.spec.labels),
        "status": Status(ready=True, netns="/x"),
    }
    return Pod(**{**facts, **changes})


def services(text: str, waypoints: Any = None) -> dict[str, Service]:
    return services_of(store(text), waypoints or {}, lambda _, name: (f"vip-{name}",))


def workload(made: Pod, text: str = SERVICES, waypoints: Any = None) -> Workload:
    (found,) = workloads_of(store(text), [made], waypoints or {}, convert([])).values()
    return found


def test_services_have_addresses_and_tcp_ports() -> None:
    """UDP is not ours, and a name for something else is no service of the mesh."""
    made = services(SERVICES)

    assert sorted(each.name for each in made.values()) == ["api", "headless", "nobody"]
    assert made[KEY].addresses == ("vip-api",)
    assert made["shop/headless.shop.svc.cluster.local"].addresses == ()
    assert [(p.port, p.target_port, p.target_name, p.app_protocol) for p in made[KEY].ports] == [
        (80, 0, "web", "http"),
        (5432, 5432, "", "tcp"),
        (90, 9090, "", "http"),
        (91, 91, "", "http"),
    ]


def test_a_workload_says_where_its_services_lead() -> None:
    """Named ports are looked up in the pod; a service without selector has no pods."""
    made = workload(pod())

    assert made.services == {
        KEY: {80: 8080, 5432: 5432, 90: 9090, 91: 91},
        "shop/headless.shop.svc.cluster.local": {80: 80},
    }
    assert (made.service_account, made.canonical_name, made.canonical_revision) == ("api", "api", "v2")
    assert made.healthy


@pytest.mark.parametrize(
    ("changes", "protocol"),
    [
        ({}, Protocol.TCP),
        ({"capture": Capture(phase=Phase.ENTERING)}, Protocol.TCP),
        ({"capture": Capture(phase=Phase.IN)}, Protocol.HBONE),
        ({"capture": Capture(phase=Phase.LEAVING)}, Protocol.TCP),
        ({"mode": Mode.SIDECAR}, Protocol.ISTIO_MTLS),
        ({"mode": Mode.SIDECAR, "status": Status()}, Protocol.TCP),
        ({"role": Role.WAYPOINT}, Protocol.HBONE),
        ({"role": Role.WAYPOINT, "status": Status()}, Protocol.TCP),
    ],
    ids=["none", "entering", "in", "leaving", "sidecar", "starting", "waypoint", "waypoint-starting"],
)
def test_how_a_pod_is_reached(changes: dict[str, Any], protocol: Protocol) -> None:
    """Only what is ready for it is advertised."""
    assert workload(pod(**changes)).protocol is protocol


def test_an_ending_pod_gets_nothing_new() -> None:
    """It is there until its connections have ended."""
    assert not workload(pod(ending=True)).healthy


WAYPOINT = Waypoint(namespace="shop", name="way", traffic="all", programmed=True)
LABEL = "istio.io/use-waypoint"


def named(*, on_namespace: str = "", on_service: str = "") -> str:
    space = f"metadata: {{name: shop, labels: {{{LABEL}: {on_namespace}}}}}" if on_namespace else ""
    text = f"apiVersion: v1\nkind: Namespace\n{space}\n---" if space else ""
    own = f"name: api, labels: {{{LABEL}: {on_service}}}" if on_service else "name: api"
    return text + SERVICES.replace("name: api", own, 1)


@pytest.mark.parametrize(
    ("text", "traffic", "programmed", "found"),
    [
        (named(), "service", True, ""),
        (named(on_namespace="way"), "service", True, WAYPOINT.key),
        (named(on_namespace="way"), "all", True, WAYPOINT.key),
        (named(on_namespace="way"), "workload", True, ""),
        (named(on_namespace="way"), "service", False, ""),
        (named(on_namespace="other"), "service", True, ""),
        (named(on_service="way"), "service", True, WAYPOINT.key),
        (named(on_namespace="way", on_service="none"), "service", True, ""),
    ],
    ids=["no-label", "namespace", "all", "workload-only", "never-ready", "missing", "own", "opted-out"],
)
def test_which_waypoint_a_service_has(text: str, traffic: str, programmed: bool, found: str) -> None:
    """Istio's resolution."""
    one = Waypoint(namespace="shop", name="way", traffic=traffic, programmed=programmed)

    made = services(text, {("shop", "way"): one})

    assert made[KEY].waypoint == found
    assert made[WAYPOINT.key].waypoint == ""
    assert [port.port for port in made[WAYPOINT.key].ports] == [HBONE_PORT]


def test_a_waypoints_workload_serves_its_service() -> None:
    """And has no waypoint and no policies itself."""
    made = workload(
        pod(role=Role.WAYPOINT, owner="Gateway/way"), named(on_namespace="way"), {("shop", "way"): WAYPOINT}
    )

    assert made.waypoint_for == WAYPOINT.key
    assert made.services == {WAYPOINT.key: {HBONE_PORT: HBONE_PORT}}
    assert (made.waypoint, made.authorization_policies) == ("", ())


def test_pod_traffic_goes_through_a_waypoint_that_serves_it() -> None:
    """For workloads, not for services."""
    text = named(on_namespace="way")

    assert workload(pod(), text, {("shop", "way"): WAYPOINT}).waypoint == WAYPOINT.key
    service_only = Waypoint(namespace="shop", name="way", programmed=True)
    assert workload(pod(), text, {("shop", "way"): service_only}).waypoint == ""


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ("", ("10.96.0.11",)),
        ("ipFamilies: [IPv6], ", ("fd00:10:96::b",)),
        ("ipFamilyPolicy: SingleStack, ipFamilies: [IPv4], ", ("10.96.0.11",)),
        ("ipFamilyPolicy: PreferDualStack, ", ("10.96.0.11", "fd00:10:96::b")),
        ("ipFamilyPolicy: RequireDualStack, ipFamilies: [IPv6], ", ("fd00:10:96::b", "10.96.0.11")),
        ("ipFamilies: [IPv6, IPv4], ", ("fd00:10:96::b", "10.96.0.11")),
    ],
    ids=["default", "six", "four", "both", "six-first", "listed"],
)
def test_a_service_has_the_families_it_asks_for(fields: str, expected: tuple[str, ...]) -> None:
    """`python3 -m http.server` listens on IPv4 only: an IPv6 address for it would lead to resets."""
    text = f"apiVersion: v1\nkind: Service\nmetadata: {{name: x}}\nspec: {{{fields}ports: [{{port: 80}}]}}"

    (made,) = services_of(store(text), {}, lambda *_: ("10.96.0.11", "fd00:10:96::b")).values()
    (alone,) = services_of(store(text), {}, lambda *_: ("127.96.0.11",)).values()

    assert made.addresses == expected
    assert alone.addresses == ("127.96.0.11",)
