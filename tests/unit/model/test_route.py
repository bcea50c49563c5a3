"""Where connections go, and which that arrive are ours: the table of cases."""

from __future__ import annotations

import pytest

from ambient.model.identity import SpiffeId
from ambient.model.route import (
    Admission,
    Admitted,
    Pass,
    Refuse,
    Rejected,
    Route,
    Tunnel,
    admit,
    route,
    route_request,
)
from ambient.model.workload import Protocol, Workload
from tests.meshes import API, DB, WAYPOINT, mesh_of, service, workload

CLIENT = workload("client", "10.0.0.9", "fd00::9")
API_1 = workload("api-1", "10.0.0.1", "fd00::1", serves=API, node="node-2")
API_2 = workload("api-2", "10.0.0.2", serves=API)
DB_1 = workload("db-1", "10.0.0.3", serves=DB, protocol=Protocol.TCP)
WAY = workload("waypoint", "10.0.0.7", "fd00::7", serves=WAYPOINT, waypoint_for=WAYPOINT, port=15008)
GUARDED = workload("guarded", "10.0.0.5", waypoint=WAYPOINT)
MESH = mesh_of(
    *(CLIENT, API_1, API_2, DB_1, WAY, GUARDED),
    workload("lost", "10.0.0.6", waypoint="shop/none"),
    workload("car", "10.0.0.8", protocol=Protocol.ISTIO_MTLS),
    service("api", "10.96.0.1", "fd00:96::1"),
    service("db", "10.96.0.2"),
    service("empty", "10.96.0.3"),
    service("far", "10.96.0.4", waypoint="shop/none"),
    service("via", "10.96.0.5", waypoint=WAYPOINT),
    service("waypoint", "10.96.0.7", port=15008),
)


def tunnel(
    to: Workload, ip: str, authority: str, service: str = "", through_waypoint: bool = False
) -> Tunnel:
    return Tunnel(
        ip=ip,
        authority=authority,
        identities=frozenset({to.identity}),
        workload_uid=to.uid,
        service=service,
        through_waypoint=through_waypoint,
    )


VIA = "shop/via.shop.svc.cluster.local"

ROUTES: dict[str, tuple[str, int, float, Route]] = {
    "service-first": ("10.96.0.1", 80, 0.0, tunnel(API_1, "10.0.0.1", "10.0.0.1:8080", API)),
    "service-second": ("10.96.0.1", 80, 0.99, tunnel(API_2, "10.0.0.2", "10.0.0.2:8080", API)),
    "v6-service": ("fd00:96::1", 80, 0.0, tunnel(API_1, "fd00::1", "[fd00::1]:8080", API)),
    "v6-service-v4-pod": ("fd00:96::1", 80, 0.9, tunnel(API_2, "10.0.0.2", "10.0.0.2:8080", API)),
    "plain-endpoint": ("10.96.0.2", 80, 0.5, Pass("10.0.0.3", 8080, DB, DB_1.uid)),
    "no-endpoint": ("10.96.0.3", 80, 0.5, Refuse("no healthy upstream: 10.96.0.3:80")),
    "no-such-port": ("10.96.0.1", 81, 0.5, Refuse("no healthy upstream: 10.96.0.1:81")),
    "service-waypoint": ("10.96.0.5", 80, 0.5, tunnel(WAY, "10.0.0.7", "10.96.0.5:80", VIA, True)),
    "waypoint-gone": ("10.96.0.4", 80, 0.5, Refuse("waypoint without a healthy endpoint: shop/none")),
    "pod": ("10.0.0.1", 99, 0.5, tunnel(API_1, "10.0.0.1", "10.0.0.1:99")),
    "pod-v6": ("fd00::1", 99, 0.5, tunnel(API_1, "fd00::1", "[fd00::1]:99")),
    "plain-pod": ("10.0.0.3", 99, 0.5, Pass("10.0.0.3", 99, "", DB_1.uid)),
    "sidecar-pod": ("10.0.0.8", 99, 0.5, Pass("10.0.0.8", 99, "", "Kubernetes//Pod/shop/car#1")),
    "pod-waypoint": ("10.0.0.5", 99, 0.5, tunnel(WAY, "10.0.0.7", "10.0.0.5:99", "", True)),
    "pod-waypoint-gone": ("10.0.0.6", 99, 0.5, Refuse("waypoint without a healthy endpoint: shop/none")),
    "stranger": ("93.184.216.34", 443, 0.5, Pass("93.184.216.34", 443)),
    "stranger-15008": ("93.184.216.34", 15008, 0.5, Pass("93.184.216.34", 15008)),
    "own-port": ("10.0.0.9", 15001, 0.5, Refuse("attempted recursive call to ourselves")),
    "socks-entry": ("10.0.0.9", 15080, 0.5, Refuse("attempted recursive call to ourselves")),
    "loopback-socks-entry": ("127.0.0.1", 15080, 0.5, Refuse("attempted recursive call to ourselves")),
    "loopback-own-port": ("127.0.0.1", 15006, 0.5, Refuse("attempted recursive call to ourselves")),
    "v6-loopback": ("::1", 15008, 0.5, Refuse("attempted recursive call to ourselves")),
}


@pytest.mark.parametrize("case", ROUTES.values(), ids=ROUTES.keys())
def test_a_connection_goes_where_the_mesh_says(case: tuple[str, int, float, Route]) -> None:
    """Each row is a sentence of the module's first page."""
    ip, port, chance, expected = case

    assert route(MESH, CLIENT, ip, port, chance) == expected


def test_a_waypoint_reaches_what_it_serves_directly() -> None:
    """Otherwise its traffic would come back to it for ever."""
    assert route(MESH, WAY, "10.0.0.5", 99, 0.5) == tunnel(GUARDED, "10.0.0.5", "10.0.0.5:99")
    assert route(MESH, WAY, "10.96.0.5", 80, 0.5) == Refuse("no healthy upstream: 10.96.0.5:80")


# A service behind the waypoint, one that is not, and a pod of each kind.
SERVED = service("served", "10.96.1.1", waypoint=WAYPOINT)
SERVED_POD = workload("served-1", "10.0.1.1", serves=SERVED.key)
SERVED_MESH = mesh_of(
    *(CLIENT, API_1, WAY, GUARDED, SERVED, SERVED_POD),
    service("api", "10.96.0.1"),
    service("other", "10.96.1.2", waypoint=WAYPOINT),
)
TO_SERVED = tunnel(SERVED_POD, "10.0.1.1", "10.0.1.1:8080", SERVED.key)
TO_API = tunnel(API_1, "10.0.0.1", "10.0.0.1:8080", API)

REQUESTS: dict[str, tuple[Workload, str, int, str, Route]] = {
    "by-address": (WAY, "10.96.1.1", 80, "", TO_SERVED),
    "by-host": (WAY, "10.96.1.2", 80, "served:80", TO_SERVED),
    "unknown-host": (WAY, "10.96.1.1", 80, "example.com", TO_SERVED),
    "host-without-port": (WAY, "10.96.1.1", 80, "Served.shop", TO_SERVED),
    "host-of-another-port": (WAY, "10.96.1.2", 81, "served", Refuse("no healthy upstream: 10.96.1.2:81")),
    "host-not-served": (WAY, "10.96.1.1", 80, "api", TO_SERVED),
    "not-served": (WAY, "10.96.0.1", 80, "", Refuse("not served by this waypoint: 10.96.0.1:80")),
    "unknown": (WAY, "9.9.9.9", 80, "", Refuse("not served by this waypoint: 9.9.9.9:80")),
    "pod": (WAY, "10.0.0.5", 99, "", tunnel(GUARDED, "10.0.0.5", "10.0.0.5:99")),
    "pod-not-served": (WAY, "10.0.0.1", 99, "", Refuse("not served by this waypoint: 10.0.0.1:99")),
    "sidecar-by-host": (CLIENT, "10.96.1.1", 80, "api", TO_API),
    "sidecar-by-address": (CLIENT, "10.96.0.1", 80, "", TO_API),
    "sidecar-pod": (CLIENT, "10.0.0.1", 99, "", tunnel(API_1, "10.0.0.1", "10.0.0.1:99")),
    "sidecar-stranger": (CLIENT, "9.9.9.9", 80, "example.com", Pass("9.9.9.9", 80)),
}


@pytest.mark.parametrize("case", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_request_goes_by_host_and_else_by_address(case: tuple[Workload, str, int, str, Route]) -> None:
    """A Host header chooses among what the proxy serves; it never opens a way to anything else."""
    me, ip, port, host, expected = case

    assert route_request(SERVED_MESH, me, ip, port, host, 0.5) == expected


ADMISSIONS: dict[str, tuple[str, Admission]] = {
    "mine": ("10.0.1.1:80", Admitted("10.0.1.1", 80)),
    "by-name": ("served.shop.svc.cluster.local:80", Admitted("10.0.1.1", 8080, SERVED.key)),
    "foreign": ("10.0.0.1:80", Rejected(400, "ip mismatch: 10.0.1.1 != 10.0.0.1")),
    "loopback": ("127.0.0.1:80", Rejected(400, "ip mismatch: 10.0.1.1 != 127.0.0.1")),
    "v6-loopback": ("[::1]:80", Rejected(400, "ip mismatch: 10.0.1.1 != ::1")),
    "metadata-service": ("169.254.169.254:80", Rejected(400, "ip mismatch: 10.0.1.1 != 169.254.169.254")),
    "service-address": ("10.96.1.1:80", Rejected(400, "ip mismatch: 10.0.1.1 != 10.96.1.1")),
    "no-port": ("10.0.1.1", Rejected(400, "bad authority: authority without a port: '10.0.1.1'")),
    "unknown-name": ("nobody.shop:80", Rejected(404, "no service for hostname: nobody.shop")),
    "not-its-service": ("api.shop:80", Rejected(400, f"service {API} is not served by this workload")),
    "no-such-port": (
        "served.shop:81",
        Rejected(503, "requested service served.shop:81 found, but cannot resolve port"),
    ),
    "own-port": ("10.0.1.1:15006", Rejected(503, "attempted recursive call to ourselves: port 15006")),
    "socks-entry": ("10.0.1.1:15080", Rejected(503, "attempted recursive call to ourselves: port 15080")),
}


@pytest.mark.parametrize("case", ADMISSIONS.values(), ids=ADMISSIONS.keys())
def test_only_ones_own_targets_are_admitted(case: tuple[str, Admission]) -> None:
    """A tunnel is no way into somebody else's pod."""
    authority, expected = case

    assert admit(SERVED_MESH, SERVED_POD, "10.0.1.1", authority, CLIENT.identity) == expected


HEADLESS = service("headless", waypoint=WAYPOINT)
WAYPOINT_ADMISSIONS: dict[str, tuple[str, Admission]] = {
    "service-address": ("10.96.1.1:80", Admitted("10.96.1.1", 80, SERVED.key)),
    "service-name": ("served.shop:80", Admitted("10.96.1.1", 80, SERVED.key)),
    "headless-name": ("headless.shop:80", Admitted("10.0.0.7", 80, HEADLESS.key)),
    "pod": ("10.0.0.5:99", Admitted("10.0.0.5", 99)),
    "other-service": ("10.96.0.1:80", Rejected(400, "ip mismatch: 10.0.0.7 != 10.96.0.1")),
    "other-pod": ("10.0.0.1:80", Rejected(400, "ip mismatch: 10.0.0.7 != 10.0.0.1")),
    "other-name": ("api.shop:80", Rejected(400, f"service {API} is not served by this workload")),
    "service-on-15001": ("10.96.1.1:15001", Admitted("10.96.1.1", 15001, SERVED.key)),
}


@pytest.mark.parametrize("case", WAYPOINT_ADMISSIONS.values(), ids=WAYPOINT_ADMISSIONS.keys())
def test_a_waypoint_admits_what_names_it(case: tuple[str, Admission]) -> None:
    """And nothing else: it is no open proxy."""
    authority, expected = case
    mesh = mesh_of(*SERVED_MESH.workloads(), *SERVED_MESH.services(), HEADLESS)

    assert admit(mesh, WAY, "10.0.0.7", authority, CLIENT.identity) == expected


def test_another_trust_domain_is_refused() -> None:
    """Its roots are not ours, whatever its certificate says."""
    stranger = SpiffeId("evil.local", "shop", "client")

    found = admit(SERVED_MESH, SERVED_POD, "10.0.1.1", "10.0.1.1:80", stranger)

    assert found == Rejected(403, "foreign trust domain: evil.local")
