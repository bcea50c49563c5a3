"""Model values on the wire: everything comes back as it was, and nothing odd comes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgpack
import pytest

from ambient.errors import RemoteProtocolError
from ambient.model.identity import SpiffeId
from ambient.model.podspec import Container, ContainerPort, PodSpec, Probe, ProbeKind
from ambient.model.policy import Action, Match, MatchKind, Policy, Scope, StringMatch
from ambient.model.service import Service, ServicePort
from ambient.model.workload import Protocol, Workload
from ambient.wire.values import from_wire, to_wire

WORKLOAD = Workload(
    uid="Kubernetes//Pod/shop/web-0#1",
    name="web-0",
    namespace="shop",
    addresses=("10.244.1.2", "fd00:10:244:1::2"),
    protocol=Protocol.HBONE,
    services={"shop/web.shop.svc.cluster.local": {80: 8080, 443: 8443}},
    authorization_policies=("shop/only",),
)
POLICY = Policy(
    key="shop/only",
    namespace="shop",
    action=Action.DENY,
    scope=Scope.WORKLOAD,
    rules=(
        (
            (Match(principals=(StringMatch(MatchKind.PREFIX, "cluster.local/"),), destination_ports=(80,)),),
            (),
        ),
        (),
    ),
)
SERVICE = Service(
    name="web",
    namespace="shop",
    hostname="web.shop.svc.cluster.local",
    addresses=("10.96.0.11",),
    ports=(ServicePort(port=80, target_name="http", app_protocol="http"),),
)
SPEC = PodSpec(
    containers=(
        Container(
            name="web",
            command=("nginx",),
            ports=(ContainerPort(number=80, name="http"),),
            readiness=Probe(kind=ProbeKind.HTTP, port=80, headers=(("Host", "web"),)),
        ),
    ),
    labels={"app": "web"},
)


@pytest.mark.parametrize("value", [WORKLOAD, POLICY, SERVICE, SPEC], ids=lambda value: type(value).__name__)
def test_values_survive_the_wire(value: Any) -> None:
    """Through real msgpack, which has no tuples and only text keys."""
    packed = msgpack.packb(to_wire(value))

    assert from_wire(type(value), msgpack.unpackb(packed, strict_map_key=True)) == value


def test_what_is_left_out_has_its_default() -> None:
    """A newer field is no reason for an older peer to fail."""
    assert from_wire(Workload, {"uid": "u", "name": "n", "namespace": "s"}) == Workload(
        uid="u", name="n", namespace="s"
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"uid": 7}, "Workload.uid: expected str, got int"),
        ({"healthy": 1}, "Workload.healthy: expected bool, got int"),
        ({"protocol": "QUIC"}, "Workload.protocol: not a Protocol: 'QUIC'"),
        ({"addresses": "10.0.0.1"}, "Workload.addresses: expected a list"),
        ({"services": [["a", [[80, 8080]]]]}, "Workload.services: expected a map"),
        ({"services": {"a": [[80]]}}, "Workload.services: expected pairs"),
        ({"services": {"a": [[True, 8080]]}}, "Workload.services: expected int, got bool"),
        ({"colour": "red"}, r"unknown or missing fields \['colour'\]"),
    ],
    ids=["text", "bool", "enum", "list", "map", "pairs", "bool-port", "unknown"],
)
def test_a_wrong_type_is_named(change: dict[str, Any], reason: str) -> None:
    """Whoever reads the log must know which field."""
    with pytest.raises(RemoteProtocolError, match=reason):
        from_wire(Workload, {**to_wire(WORKLOAD), **change})


@pytest.mark.parametrize("value", [None, [], "x", 3], ids=repr)
def test_only_a_map_is_a_value(value: object) -> None:
    """Anything else is the peer's mistake."""
    with pytest.raises(RemoteProtocolError):
        from_wire(Service, value)


def test_a_missing_field_without_default_is_named() -> None:
    """Half a workload is none."""
    with pytest.raises(RemoteProtocolError, match="'namespace'"):
        from_wire(Workload, {"uid": "u", "name": "n"})


@dataclass(frozen=True)
class Mixed:
    identity: SpiffeId
    pair: tuple[str, int]
    some: int | None = None
    names: frozenset[str] = frozenset()


def test_the_other_forms() -> None:
    """Identities as URIs, fixed tuples, options, sets."""
    value = Mixed(SpiffeId("td", "a", "b"), ("x", 1), None, frozenset({"b", "a"}))

    assert to_wire(value) == {
        "identity": "spiffe://td/ns/a/sa/b",
        "pair": ["x", 1],
        "some": None,
        "names": ["a", "b"],
    }
    assert from_wire(Mixed, to_wire(value)) == value
    with pytest.raises(RemoteProtocolError, match="not spiffe"):
        from_wire(Mixed, {**to_wire(value), "identity": "web"})
    with pytest.raises(RemoteProtocolError, match="expected 2 values"):
        from_wire(Mixed, {**to_wire(value), "pair": ["x"]})
