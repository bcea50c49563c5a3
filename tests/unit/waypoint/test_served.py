"""What a waypoint serves, and served until just now."""

from __future__ import annotations

from ambient.model.mesh import Change, Mesh
from ambient.model.service import Service
from ambient.model.workload import Workload
from waypoint.served import GRACE_SECONDS, Served

KEY = "shop/waypoint.shop.svc.cluster.local"
ME = Workload(uid="way", name="way", namespace="shop", addresses=("10.0.0.9",), waypoint_for=KEY)


def service(waypoint: str) -> Service:
    hostname = "api.shop.svc.cluster.local"
    return Service(
        name="api", namespace="shop", hostname=hostname, addresses=("10.96.0.1",), waypoint=waypoint
    )


def test_service_is_served_while_it_names_us_and_for_a_while_longer() -> None:
    """CONNECTs that were on their way when the service moved away are answered; later ones are not."""
    mesh, now = Mesh(), [100.0]
    served = Served(mesh, "way", lambda: now[0])
    assert served.me is None
    assert not served.now("10.96.0.1")

    mesh.apply(Change(workloads=(ME,), services=(service(KEY),)))
    served.mesh_changed()
    assert served.now("10.96.0.1")
    assert not served.lately("10.96.0.1")

    mesh.apply(Change(services=(service(""),), removed_workloads=("way",)))
    served.mesh_changed()
    assert served.me == ME
    assert not served.now("10.96.0.1")
    assert served.lately("10.96.0.1")
    assert not served.lately("10.96.0.2")

    now[0] += GRACE_SECONDS
    assert not served.lately("10.96.0.1")


def test_service_that_comes_back_is_simply_served() -> None:
    """Moving to and fro leaves nothing behind."""
    mesh = Mesh()
    served = Served(mesh, "way", lambda: 0.0)
    for waypoint in (KEY, "", KEY):
        mesh.apply(Change(workloads=(ME,), services=(service(waypoint),)))
        served.mesh_changed()

    assert served.now("10.96.0.1")
    assert not served.lately("10.96.0.1")
