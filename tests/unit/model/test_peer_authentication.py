"""PeerAuthentication: who refuses plaintext, on which ports."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.errors import ConfigError
from ambient.model.authorization import convert
from ambient.model.identity import SpiffeId
from ambient.model.manifest import parse_object
from ambient.model.objects import Object
from ambient.model.peer_authentication import STATIC_STRICT
from ambient.model.policy import Connection, decide

WEB = {"app": "web"}


def peer(
    namespace: str,
    mode: str = "",
    *,
    labels: dict[str, str] | None = None,
    ports: dict[str, Any] | None = None,
    name: str = "default",
    created: str = "",
) -> Object:
    spec: dict[str, Any] = {}
    if mode:
        spec["mtls"] = {"mode": mode}
    if labels:
        spec["selector"] = {"matchLabels": labels}
    if ports:
        spec["portLevelMtls"] = ports
    metadata = {"name": name, "namespace": namespace, **({"creationTimestamp": created} if created else {})}
    body = {
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": metadata,
        "spec": spec,
    }
    return parse_object(body, "a.yaml:1")


STRICT = (STATIC_STRICT,)
CONVERTED = ("shop/converted_peer_authentication_default",)
BOUND: dict[str, tuple[list[Object], tuple[str, ...]]] = {
    "none": ([], ()),
    "mesh": ([peer("istio-system", "STRICT")], STRICT),
    "namespace": ([peer("shop", "STRICT")], STRICT),
    "other-namespace": ([peer("other", "STRICT")], ()),
    "workload": ([peer("shop", "STRICT", labels=WEB)], STRICT),
    "other-workload": ([peer("shop", "STRICT", labels={"app": "x"})], ()),
    "namespace-beats-mesh": ([peer("istio-system", "STRICT"), peer("shop", "PERMISSIVE")], ()),
    "workload-beats-namespace": ([peer("shop", "STRICT"), peer("shop", "DISABLE", labels=WEB, name="w")], ()),
    "unset-inherits": (
        [peer("istio-system", "STRICT"), peer("shop"), peer("shop", labels=WEB, name="w")],
        STRICT,
    ),
    "unset-namespace-inherits": ([peer("istio-system", "STRICT"), peer("shop", "UNSET")], STRICT),
    "oldest-wins": (
        [peer("shop", "PERMISSIVE", name="b", created="2026-02"), peer("shop", "STRICT", created="2026-01")],
        STRICT,
    ),
    "dated-before-undated": (
        [peer("shop", "PERMISSIVE", name="b"), peer("shop", "STRICT", created="2026-01")],
        STRICT,
    ),
    "strict-but-a-port": (
        [peer("shop", "STRICT", labels=WEB, ports={"90": {"mode": "PERMISSIVE"}})],
        CONVERTED,
    ),
    "open-but-a-port": ([peer("shop", labels=WEB, ports={"90": {"mode": "STRICT"}, "91": {}})], CONVERTED),
    "all-ports-strict": ([peer("shop", "STRICT", labels=WEB, ports={"90": {"mode": "STRICT"}})], STRICT),
    "all-ports-open": ([peer("shop", labels=WEB, ports={"90": {"mode": "DISABLE"}})], ()),
    "port-unset": ([peer("shop", "STRICT", labels=WEB, ports={"90": {"mode": "UNSET"}})], STRICT),
}


@pytest.mark.parametrize("case", BOUND.values(), ids=BOUND.keys())
def test_the_most_specific_and_oldest_decides(case: tuple[list[Object], tuple[str, ...]]) -> None:
    """Workload, then namespace, then mesh; and every key that is bound is also distributed."""
    objects, expected = case

    found = convert(objects)

    assert found.bound_to("shop", WEB) == expected
    assert set(expected) <= {policy.key for policy in found.policies}


def allowed(objects: list[Object], identity: SpiffeId | None, port: int) -> bool:
    policies = convert(objects).policies
    return decide(policies, Connection(identity, "10.0.0.1", "10.0.0.2", port)).allowed


@pytest.mark.parametrize(
    ("mode", "level", "port_90", "port_80"),
    [("STRICT", "PERMISSIVE", True, False), ("PERMISSIVE", "STRICT", False, True)],
)
def test_a_port_may_differ(mode: str, level: str, port_90: bool, port_80: bool) -> None:
    """Metrics are scraped in plaintext while the rest is strict, or the other way round."""
    objects = [peer("shop", mode, labels=WEB, ports={"90": {"mode": level}})]
    anybody = SpiffeId("cluster.local", "a", "b")

    assert (allowed(objects, None, 90), allowed(objects, None, 80)) == (port_90, port_80)
    assert (allowed(objects, anybody, 90), allowed(objects, anybody, 80)) == (True, True)


def test_ports_need_a_selector() -> None:
    """Istio ignores them there; somebody would think they were safe."""
    with pytest.raises(
        ConfigError, match=r"spec\.portLevelMtls: needs a selector: ports belong to workloads"
    ):
        peer("shop", "STRICT", ports={"90": {"mode": "STRICT"}})
