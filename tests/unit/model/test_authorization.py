"""Security objects become policies; what layer 4 cannot see fails safe."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.errors import ConfigError
from ambient.model.authorization import Security, check_security, convert
from ambient.model.manifest import parse_object
from ambient.model.objects import Object
from ambient.model.policy import ANYTHING, Action, Match, Policy, Scope, StringMatch


def authorization(spec: dict[str, Any], name: str = "p", namespace: str = "shop") -> Object:
    body = {
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }
    return parse_object(body, "a.yaml:1")


def only(spec: dict[str, Any]) -> Policy:
    (policy,) = convert([authorization(spec)]).policies
    return policy


def names(*values: str) -> tuple[StringMatch, ...]:
    return tuple(StringMatch.parse(value) for value in values)


def test_every_condition_of_layer_4_is_converted() -> None:
    """One clause for "to", one for "from", one for each "when"."""
    policy = only(
        {
            "action": "DENY",
            "rules": [
                {
                    "to": [{"operation": {"ports": ["80", "443"], "notPorts": ["81"]}}],
                    "from": [
                        {
                            "source": {
                                "principals": ["spiffe://cluster.local/ns/a/sa/b", "*"],
                                "notPrincipals": ["*/sa/c"],
                                "namespaces": ["x*"],
                                "notNamespaces": ["xy"],
                                "serviceAccounts": ["a/b"],
                                "notServiceAccounts": ["a/c"],
                                "ipBlocks": ["10.0.0.1"],
                                "notIpBlocks": ["10.0.0.0/8"],
                            }
                        }
                    ],
                    "when": [
                        {"key": "source.ip", "values": ["10.0.0.1"], "notValues": ["10.0.0.2"]},
                        {"key": "source.namespace", "values": ["a"]},
                        {"key": "source.principal", "notValues": ["b"]},
                        {"key": "source.serviceAccount", "values": ["a/b"]},
                        {"key": "destination.ip", "values": ["10.0.0.3"]},
                        {"key": "destination.port", "values": ["80"], "notValues": ["81"]},
                    ],
                }
            ],
        }
    )

    assert policy == Policy(
        key="shop/p",
        namespace="shop",
        action=Action.DENY,
        scope=Scope.NAMESPACE,
        rules=(
            (
                (Match(destination_ports=(80, 443), not_destination_ports=(81,)),),
                (
                    Match(
                        principals=names("cluster.local/ns/a/sa/b", "*"),
                        not_principals=names("*/sa/c"),
                        namespaces=names("x*"),
                        not_namespaces=names("xy"),
                        service_accounts=("a/b",),
                        not_service_accounts=("a/c",),
                        source_ips=("10.0.0.1/32",),
                        not_source_ips=("10.0.0.0/8",),
                    ),
                ),
                (Match(source_ips=("10.0.0.1/32",), not_source_ips=("10.0.0.2/32",)),),
                (Match(namespaces=names("a")),),
                (Match(not_principals=names("b")),),
                (Match(service_accounts=("a/b",)),),
                (Match(destination_ips=("10.0.0.3/32",)),),
                (Match(destination_ports=(80,), not_destination_ports=(81,)),),
            ),
        ),
    )


@pytest.mark.parametrize(
    ("spec", "rules"),
    [({}, ()), ({"rules": []}, ()), ({"rules": [{}]}, (ANYTHING,))],
    ids=["empty", "no-rules", "empty-rule"],
)
def test_no_rules_allow_nobody_and_an_empty_rule_everybody(
    spec: dict[str, Any], rules: tuple[Any, ...]
) -> None:
    """Istio's "allow nothing" and "allow all" are one brace apart."""
    assert only(spec) == Policy(
        key="shop/p", namespace="shop", action=Action.ALLOW, scope=Scope.NAMESPACE, rules=rules
    )


PORT_80 = Match(destination_ports=(80,))
FROM_A = {"source": {"namespaces": ["a"]}}
HTTP_RULES: dict[str, tuple[str, dict[str, Any], tuple[Any, ...], str]] = {
    "allow-methods": (
        "ALLOW",
        {"to": [{"operation": {"ports": ["80"], "methods": ["GET"]}}]},
        (),
        "rule 0 asks for HTTP attributes, which ztunnel cannot see: it allows nothing",
    ),
    "allow-token": (
        "ALLOW",
        {"from": [FROM_A, {"source": {"requestPrincipals": ["*"]}}]},
        (),
        "rule 0 asks for HTTP attributes, which ztunnel cannot see: it allows nothing",
    ),
    "allow-header": (
        "ALLOW",
        {"from": [FROM_A], "when": [{"key": "request.headers[x]", "values": ["y"]}]},
        (),
        "rule 0 asks for HTTP attributes, which ztunnel cannot see: it allows nothing",
    ),
    "deny-mixed": (
        "DENY",
        {"to": [{"operation": {"ports": ["80"], "methods": ["GET"]}}]},
        (((PORT_80,),),),
        "rule 0 denies whatever its HTTP attributes: ztunnel cannot see them",
    ),
    "deny-methods": (
        "DENY",
        {"from": [FROM_A], "to": [{"operation": {"methods": ["GET"]}}]},
        (((Match(),), (Match(namespaces=names("a")),)),),
        "rule 0 asks for HTTP attributes, which ztunnel cannot see: it denies nothing",
    ),
    "deny-header": (
        "DENY",
        {"when": [{"key": "request.auth.claims[iss]", "values": ["y"]}]},
        (((Match(),),),),
        "rule 0 asks for HTTP attributes, which ztunnel cannot see: it denies nothing",
    ),
}


@pytest.mark.parametrize("case", HTTP_RULES.values(), ids=HTTP_RULES.keys())
def test_conditions_on_http_fail_safe_as_in_istio(
    case: tuple[str, dict[str, Any], tuple[Any, ...], str],
) -> None:
    """ALLOW gets stricter; DENY loses what cannot be seen; and the operator is told."""
    action, rule, rules, warning = case

    found = convert([authorization({"action": action, "rules": [rule]})])

    assert found.policies[0].rules == rules
    assert found.warnings == (f"a.yaml:1: AuthorizationPolicy shop/p: {warning}",)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"action": "CUSTOM"}, "spec.action: CUSTOM cannot be enforced by ztunnel: use ALLOW or DENY"),
        ({"action": "AUDIT"}, "spec.action: AUDIT cannot be enforced by ztunnel: use ALLOW or DENY"),
        (
            {"targetRefs": [{"kind": "Gateway", "name": "w"}]},
            "spec.targetRefs: policies at a waypoint are not supported: use a selector",
        ),
        (
            {"rules": [{"from": [{"source": {}}]}]},
            "spec.rules[0].from[0].source: sets no condition",
        ),
        (
            {"rules": [{"to": [{"operation": {"ports": []}}]}]},
            "spec.rules[0].to[0].operation: sets no condition",
        ),
        (
            {"rules": [{"from": [{"source": {"principals": ["a*b"]}}]}]},
            "spec.rules[0].from[0].source.principals[0]: 'a*b' is not a name, 'prefix*', '*suffix' or '*'",
        ),
        (
            {"rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/33"]}}]}]},
            "spec.rules[0].from[0].source.ipBlocks[0]: not an address or CIDR block: '10.0.0.0/33'",
        ),
        (
            {"rules": [{"from": [{"source": {"serviceAccounts": ["web"]}}]}]},
            "spec.rules[0].from[0].source.serviceAccounts[0]: 'web' is not <namespace>/<service account>",
        ),
        (
            {"rules": [{"when": [{"key": "source.ip"}]}]},
            "spec.rules[0].when[0]: sets neither values nor notValues",
        ),
        (
            {"rules": [{"when": [{"key": "source.port", "values": ["80"]}]}]},
            "spec.rules[0].when[0].key: unknown attribute 'source.port'",
        ),
        (
            {"rules": [{"when": [{"key": "destination.port", "values": ["http"]}]}]},
            "spec.rules[0].when[0].values[0]: not a port: 'http'",
        ),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else None,
)
def test_what_cannot_be_enforced_is_refused(spec: dict[str, Any], message: str) -> None:
    """A guard that does not stand there must not look as if it did."""
    with pytest.raises(ConfigError) as caught:
        authorization(spec)

    assert str(caught.value) == f"a.yaml:1: {message}"


def test_an_unchecked_object_is_refused_with_its_origin() -> None:
    """Whoever builds objects another way gets the same answer."""
    obj = authorization({})
    object.__setattr__(obj, "body", {"metadata": {}, "spec": {"action": "CUSTOM"}})

    with pytest.raises(ConfigError, match=r"^a\.yaml:1: spec\.action: CUSTOM cannot be enforced"):
        convert([obj])


def test_scope_follows_namespace_and_selector() -> None:
    """The root namespace guards the mesh, a selector only its pods."""
    picky = {"selector": {"matchLabels": {"app": "web"}}}
    found = convert(
        [
            authorization({}, "all", "istio-system"),
            authorization({}, "ns"),
            authorization(picky, "z"),
            authorization(picky, "a"),
            authorization(picky, "a", "other"),
        ]
    )

    assert [policy.scope for policy in found.policies] == [
        Scope.GLOBAL,
        Scope.NAMESPACE,
        *[Scope.WORKLOAD] * 3,
    ]
    assert found.bound_to("shop", {"app": "web", "x": "y"}) == ("shop/a", "shop/z")
    assert found.bound_to("shop", {"app": "api"}) == ()
    assert found.bound_to("other", {"app": "web"}) == ("other/a",)


def test_other_objects_mean_nothing_here() -> None:
    """The caller hands over all it has."""
    namespace = parse_object({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}})

    assert convert([namespace]) == Security()
    check_security(authorization({}))
