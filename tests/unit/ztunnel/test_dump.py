"""The dump has the shape that istioctl reads."""

from __future__ import annotations

import time

from ambient.model.identity import SpiffeId
from ambient.model.mesh import Change, Mesh
from ambient.model.policy import Action, Match, MatchKind, Policy, Scope, StringMatch
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Protocol, Workload
from ambient.pki.authority import Authority
from ambient.pki.request import new_request
from ztunnel import dump

API = Service(
    name="api",
    namespace="shop",
    hostname="api.shop.svc.cluster.local",
    addresses=("10.96.0.7",),
    ports=(ServicePort(port=80, target_port=8080),),
    waypoint="shop/waypoint.shop.svc.cluster.local",
)
POD = Workload(
    uid="Kubernetes//Pod/shop/api-1",
    name="api-1",
    namespace="shop",
    service_account="api",
    addresses=("10.244.1.5",),
    node="node-1",
    protocol=Protocol.HBONE,
    services={API.key: {80: 8080}},
    workload_name="api",
)
POLICY = Policy(
    key="shop/only-web",
    namespace="shop",
    action=Action.ALLOW,
    scope=Scope.WORKLOAD,
    rules=(
        (
            (
                Match(
                    not_principals=(StringMatch(MatchKind.PRESENCE),),
                    service_accounts=("shop/web",),
                    destination_ports=(8080,),
                ),
            ),
        ),
    ),
)


def test_every_kind_has_istios_names() -> None:
    """``istioctl ztunnel-config -f`` finds its columns."""
    mesh = Mesh()
    mesh.apply(Change(workloads=(POD,), services=(API,), policies=(POLICY,)))

    found = {name: [step() for step in steps] for name, steps in dump.sections(mesh).items()}

    (workload,), (service,), (policy,) = found["workloads"], found["services"], found["policies"]
    assert isinstance(workload, dict)
    assert isinstance(service, dict)
    assert workload["workloadIps"] == ["10.244.1.5"]
    assert workload["protocol"] == "HBONE"
    assert workload["services"] == [API.key]
    assert "waypoint" not in workload
    assert service["vips"] == ["/10.96.0.7"]
    assert service["ports"] == {"80": 8080}
    assert service["endpoints"] == {
        POD.uid: {"workloadUid": POD.uid, "port": {"80": 8080}, "status": "Healthy"}
    }
    assert service["waypoint"] == {"destination": API.waypoint, "hboneMtlsPort": 15008}
    assert policy == {
        "name": "only-web",
        "namespace": "shop",
        "scope": "WorkloadSelector",
        "action": "Allow",
        "rules": [
            [
                [
                    {
                        "serviceAccounts": ["shop/web"],
                        "notPrincipals": [{"Presence": ""}],
                        "destinationPorts": [8080],
                    }
                ]
            ]
        ],
    }


def test_a_certificate_says_its_times_and_number_only() -> None:
    """What it is made of is of no use in a dump."""
    now = time.time()
    authority, identity = Authority(now), SpiffeId("cluster.local", "shop", "api")
    issued = authority.issue(new_request(identity)[1], identity, now)

    found = dump.certificate_dump(str(identity), issued.chain, issued.roots, "")

    assert found["state"] == "Available"
    assert "error" not in found
    leaf = found["certChain"][0]  # type: ignore[index]
    assert set(leaf) == {"serialNumber", "validFrom", "expirationTime"}
    assert leaf["validFrom"].endswith("Z")
    assert int(leaf["serialNumber"], 16) > 0
    assert len(found["rootCerts"]) == 1  # type: ignore[arg-type]


def test_an_identity_without_a_certificate_says_why() -> None:
    """Being fetched, or refused."""
    assert dump.certificate_dump("spiffe://a", (), (), "")["state"] == "Initializing"
    refused = dump.certificate_dump("spiffe://a", (), (), "not of this node")
    assert (refused["state"], refused["error"]) == ("Unavailable", "not of this node")
