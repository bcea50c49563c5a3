"""Which name has which address in the cluster."""

from __future__ import annotations

import pytest

from ambient.model.mesh import Change, Mesh
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Workload
from ambient.redirect.names import answer
from ambient.wire.dns import TYPE_A, TYPE_AAAA, Answer, Query, Rcode

WEB = Service(
    name="web",
    namespace="shop",
    hostname="web.shop.svc.cluster.local",
    addresses=("10.96.0.7", "fd00:10:96::7"),
    ports=(ServicePort(port=80, target_port=8080),),
)
DB = Service(
    name="db",
    namespace="shop",
    hostname="db.shop.svc.cluster.local",
    ports=(ServicePort(port=5432, target_port=5432),),
)
DB_POD = Workload(
    uid="Kubernetes//Pod/shop/db-0#1",
    name="db-0",
    namespace="shop",
    addresses=("10.244.1.5", "fd00:10:244:1::5"),
    services={DB.key: {5432: 5432}},
)


def ask(name: str, kind: int = TYPE_A, opcode: int = 0) -> Answer | None:
    mesh = Mesh()
    mesh.apply(Change(workloads=(DB_POD,), services=(WEB, DB)))
    return answer(mesh, Query(1, name, kind, b"", opcode))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("web.shop.svc.cluster.local", TYPE_A, ("10.96.0.7",)),
        ("web.shop.svc.cluster.local", TYPE_AAAA, ("fd00:10:96::7",)),
        ("web.shop.svc.cluster.local", 33, ()),
        ("db.shop.svc.cluster.local", TYPE_A, ("10.244.1.5",)),
        ("db-0.db.shop.svc.cluster.local", TYPE_AAAA, ("fd00:10:244:1::5",)),
        ("10-244-1-5.shop.pod.cluster.local", TYPE_A, ("10.244.1.5",)),
        ("fd00-10-244-1--5.shop.pod.cluster.local", TYPE_AAAA, ("fd00:10:244:1::5",)),
    ],
    ids=["service", "service-v6", "other-type", "headless", "pod-behind-headless", "pod", "pod-v6"],
)
def test_known_names(name: str, kind: int, expected: tuple[str, ...]) -> None:
    """Names of the Kubernetes DNS specification, both families."""
    assert ask(name, kind) == Answer(Rcode.NOERROR, expected)


@pytest.mark.parametrize(
    "name",
    [
        "gone.shop.svc.cluster.local",
        "web.bank.svc.cluster.local",
        "db-1.db.shop.svc.cluster.local",
        "db-0.web.shop.svc.cluster.local",
        "x.gone.shop.svc.cluster.local",
        "10-244-1-5.bank.pod.cluster.local",
        "10-244-1-6.shop.pod.cluster.local",
        "web.shop.svc.cluster.local.shop.svc.cluster.local",
        "shop.cluster.local",
    ],
)
def test_unknown_names_of_the_cluster_do_not_exist(name: str) -> None:
    """A clear no lets the resolver go on with its search list."""
    assert ask(name) == Answer(Rcode.NXDOMAIN)


def test_other_names_are_not_ours() -> None:
    """What is outside the cluster is somebody else's to answer."""
    assert ask("example.org") is None


def test_only_questions_are_answered() -> None:
    """An UPDATE is refused as such, not answered as if it were a question."""
    assert ask("web.shop.svc.cluster.local", opcode=5) == Answer(Rcode.NOTIMP)
