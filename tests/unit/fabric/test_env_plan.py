"""The command line and environment of a container."""

from __future__ import annotations

import pytest

from ambient.fabric import env_plan
from ambient.model.podspec import Container, ContainerPort, EnvVar, PodSpec

FACTS = env_plan.PodFacts(
    uid="u1",
    name="web-0",
    namespace="shop",
    node="node-1",
    node_ip="100.64.1.2",
    addresses=("10.244.1.2", "fd00:10:244:1::2"),
    spec=PodSpec(
        containers=(),
        service_account="web",
        labels={"app": "web"},
        annotations={"ambient.dev/response-bytes": "1024", "other/x": "1"},
    ),
)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "web-0"),
        ("metadata.namespace", "shop"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['other/x']", "1"),
        ("status.podIP", "10.244.1.2"),
        ("status.podIPs", "10.244.1.2,fd00:10:244:1::2"),
        ("status.hostIP", "100.64.1.2"),
        ("spec.nodeName", "node-1"),
        ("spec.serviceAccountName", "web"),
        ("status.unknown", ""),
    ],
)
def test_the_downward_api(path: str, value: str) -> None:
    """Real images read these; an unknown one is empty rather than fatal."""
    assert env_plan.field_value(path, FACTS) == value


def test_later_variables_and_arguments_may_name_earlier_ones() -> None:
    """``$(NAME)`` is Kubernetes', not the shell's: there is no shell."""
    container = Container(
        name="web",
        command=("echo", "$(GREETING)"),
        env=(EnvVar(name="ME", field_path="metadata.name"), EnvVar(name="GREETING", value="I am $(ME)")),
    )

    values = env_plan.environment(container, FACTS, "/scratch")

    assert env_plan.command_line(container, values) == ("echo", "I am web-0")
    assert values["HOME"] == "/scratch"


def test_the_builtin_workload_is_told_its_annotations() -> None:
    """And nobody else's."""
    container = Container(name="web", ports=(ContainerPort(number=80), ContainerPort(number=81)))

    values = env_plan.builtin_environment(container, FACTS, {"PYTHONPATH": "/src"})

    assert values["AMBIENT_APP_RESPONSE_BYTES"] == "1024"
    assert values["AMBIENT_APP_PORTS"] == "80,81"
    assert values["PYTHONPATH"] == "/src"
    assert not any("OTHER" in name for name in values)
