"""What a pod is to run."""

from __future__ import annotations

from typing import Any

import pytest

from ambient.errors import ConfigError
from ambient.model.manifest import parse_object
from ambient.model.objects import Object
from ambient.model.podspec import (
    Container,
    ContainerPort,
    EnvVar,
    PodSpec,
    Probe,
    ProbeKind,
    check_pod,
    expand,
    pod_spec,
)


def pod(**spec: Any) -> Object:
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "a", "labels": {"app": "a"}},
        "spec": spec,
    }
    return parse_object(body, "a.yaml:1")


def probe(**body: Any) -> Probe | None:
    containers = [{"name": "a", "ports": [{"containerPort": 80, "name": "http"}], "readinessProbe": body}]
    return pod_spec(pod(containers=containers)).containers[0].readiness


def test_everything_that_is_honoured_is_read() -> None:
    """Command, args, environment, ports, several containers: as the issue asks."""
    spec = pod_spec(
        pod(
            containers=[
                {
                    "name": "web",
                    "command": ["python3", "-m", "http.server"],
                    "args": ["$(PORT)"],
                    "workingDir": "/srv",
                    "env": [
                        {"name": "PORT", "value": "80"},
                        {"name": "EMPTY"},
                        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}},
                    ],
                    "ports": [
                        {"containerPort": 80, "name": "http"},
                        {"containerPort": 53, "protocol": "UDP"},
                        {"containerPort": 81},
                    ],
                },
                {"name": "side"},
            ],
            serviceAccountName="web",
            hostNetwork=True,
            terminationGracePeriodSeconds=5,
        )
    )

    assert spec == PodSpec(
        containers=(
            Container(
                name="web",
                command=("python3", "-m", "http.server"),
                args=("$(PORT)",),
                working_dir="/srv",
                env=(
                    EnvVar(name="PORT", value="80"),
                    EnvVar(name="EMPTY"),
                    EnvVar(name="IP", field_path="status.podIP"),
                    EnvVar(name="SECRET"),
                ),
                ports=(ContainerPort(number=80, name="http"), ContainerPort(number=81)),
            ),
            Container(name="side"),
        ),
        service_account="web",
        labels={"app": "a"},
        host_network=True,
        termination_grace_seconds=5,
    )
    assert (spec.port("http"), spec.port("grpc")) == (80, 0)


def test_the_old_name_of_the_service_account_counts() -> None:
    """kubectl prints both; old files have only this one."""
    containers = [{"name": "a"}]

    assert pod_spec(pod(containers=containers, serviceAccount="old")).service_account == "old"
    assert pod_spec(pod(containers=containers)).service_account == "default"


def test_a_deployment_gives_its_template() -> None:
    """Labels and annotations of the pod are the template's, not the Deployment's."""
    template = {
        "metadata": {"labels": {"app": "a"}, "annotations": {"b": "c"}},
        "spec": {"containers": [{"name": "a"}]},
    }
    body = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "labels": {"x": "y"}},
        "spec": {"selector": {"matchLabels": {"app": "a"}}, "template": template},
    }

    spec = pod_spec(parse_object(body))

    assert (spec.labels, spec.annotations) == ({"app": "a"}, {"b": "c"})


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"httpGet": {"port": "http"}}, Probe(kind=ProbeKind.HTTP, port=80)),
        (
            {
                "httpGet": {
                    "port": 8443,
                    "path": "/ok",
                    "scheme": "HTTPS",
                    "httpHeaders": [{"name": "a", "value": "b"}],
                },
                "initialDelaySeconds": 1,
                "periodSeconds": 2,
                "timeoutSeconds": 3,
                "successThreshold": 4,
                "failureThreshold": 5,
            },
            Probe(
                kind=ProbeKind.HTTP,
                port=8443,
                path="/ok",
                scheme="https",
                headers=(("a", "b"),),
                initial_delay=1.0,
                period=2.0,
                timeout=3.0,
                success_threshold=4,
                failure_threshold=5,
            ),
        ),
        ({"tcpSocket": {"port": 80}, "periodSeconds": 0}, Probe(kind=ProbeKind.TCP, port=80)),
        ({"exec": {"command": ["true"]}}, Probe(kind=ProbeKind.EXEC, command=("true",))),
        ({"grpc": {"port": 80}}, None),
        ({}, None),
    ],
    ids=["named-port", "everything", "tcp", "exec", "grpc", "empty"],
)
def test_a_probe_is_read_with_kubernetes_defaults(body: dict[str, Any], expected: Probe | None) -> None:
    """A pod is ready when it would be in a cluster."""
    assert probe(**body) == expected


def test_parts_that_do_not_fit_are_refused() -> None:
    """Also when an object did not come from a file."""
    broken = pod(containers=[{"name": "a"}])
    object.__setattr__(broken, "body", {"spec": {"containers": []}})

    with pytest.raises(ConfigError, match=r"^a\.yaml:1: spec\.containers: is empty$"):
        pod_spec(broken)
    with pytest.raises(ConfigError, match=r"^spec\.containers: is empty$"):
        check_pod(broken)


def expression(*values: str, key: str = "kubernetes.io/hostname", operator: str = "In") -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


def test_wishes_for_nodes_are_ranked() -> None:
    """The stronger the wish, the earlier; a node is named once."""
    affinity = {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [expression("n3")]},
        "preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": expression("n6")},
            {"weight": 100, "preference": expression("n4", "n5", "n1")},
            {"weight": 50, "preference": expression("zone", key="topology.kubernetes.io/zone")},
            {"weight": 50, "preference": expression("n9", operator="NotIn")},
            {"weight": 50, "preference": {}},
        ],
    }
    full = pod(
        containers=[{"name": "a"}],
        nodeName="n1",
        nodeSelector={"kubernetes.io/hostname": "n2"},
        affinity={"nodeAffinity": affinity},
    )

    assert pod_spec(full).nodes == ("n1", "n2", "n3", "n4", "n5", "n6")


def test_an_empty_affinity_wishes_nothing() -> None:
    """Charts render empty maps."""
    empty = {"requiredDuringSchedulingIgnoredDuringExecution": {}}

    assert pod_spec(pod(containers=[{"name": "a"}], affinity={"nodeAffinity": empty})).nodes == ()
    assert pod_spec(pod(containers=[{"name": "a"}], affinity={}, nodeSelector={"a": "b"})).nodes == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--port=$(PORT)", "--port=80"),
        ("$(UNKNOWN)", "$(UNKNOWN)"),
        ("$$(PORT)", "$(PORT)"),
        ("$PORT $ $( $(PORT", "$PORT $ $( $(PORT"),
        ("$(PORT)$(PORT)", "8080"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text: str, expected: str) -> None:
    """No shell is involved, and what is unknown stays."""
    assert expand(text, {"PORT": "80"}) == expected
