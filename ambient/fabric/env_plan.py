"""The command line and environment of a container, as Kubernetes would give them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ambient.model.podspec import Container, PodSpec, expand

# Docker's default.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ANNOTATION_PREFIX = "ambient.dev/"
_KEYED = re.compile(r"metadata\.(labels|annotations)\['([^']*)'\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class PodFacts:
    """What the downward API can tell a container about its pod."""

    uid: str
    name: str
    namespace: str
    node: str
    node_ip: str
    addresses: tuple[str, ...]
    spec: PodSpec


def field_value(path: str, facts: PodFacts) -> str:
    """The value of a ``fieldRef``; "" for what a mesh does not know."""
    if keyed := _KEYED.fullmatch(path):
        source = facts.spec.labels if keyed[1] == "labels" else facts.spec.annotations
        return source.get(keyed[2], "")
    known = {
        "metadata.name": facts.name,
        "metadata.namespace": facts.namespace,
        "metadata.uid": facts.uid,
        "spec.nodeName": facts.node,
        "spec.serviceAccountName": facts.spec.service_account,
        "status.hostIP": facts.node_ip,
        "status.podIP": next(iter(facts.addresses), ""),
        "status.podIPs": ",".join(facts.addresses),
    }
    return known.get(path, "")


def environment(container: Container, facts: PodFacts, home: str) -> dict[str, str]:
    """Everything the container's program finds in its environment.

    Args:
        home: A directory that belongs to the pod alone.
    """
    values = {"PATH": PATH, "HOME": home, "HOSTNAME": facts.name, "LANG": "C.UTF-8"}
    for variable in container.env:
        if variable.field_path:
            values[variable.name] = field_value(variable.field_path, facts)
        else:
            # Kubernetes: earlier variables may be named in later ones.
            values[variable.name] = expand(variable.value, values)
    return values


def builtin_environment(
    container: Container, facts: PodFacts, inherited: Mapping[str, str]
) -> dict[str, str]:
    """What the built-in workload finds besides: its ports and annotations, and where Python's modules are."""
    told = {
        annotation_variable(name): value
        for name, value in facts.spec.annotations.items()
        if name.startswith(ANNOTATION_PREFIX)
    }
    return {
        **told,
        "AMBIENT_APP_PORTS": ",".join(str(port.number) for port in container.ports),
        # Every pod has its own network; in the loopback fabric only its own address.
        "AMBIENT_APP_ADDRESS": facts.addresses[0] if facts.addresses[0].startswith("127.") else "",
        "AMBIENT_APP_VERSION": facts.spec.labels.get("version", ""),
        "POD_NAME": facts.name,
        "POD_NAMESPACE": facts.namespace,
        "NODE_NAME": facts.node,
        "PYTHONPATH": inherited.get("PYTHONPATH", ""),
    }


def annotation_variable(name: str) -> str:
    """``ambient.dev/response-bytes`` -> ``AMBIENT_APP_RESPONSE_BYTES``."""
    return "AMBIENT_APP_" + name.removeprefix(ANNOTATION_PREFIX).replace("-", "_").upper()


def command_line(container: Container, values: Mapping[str, str]) -> tuple[str, ...]:
    """``command`` and ``args`` with ``$(NAME)`` replaced."""
    return tuple(expand(text, values) for text in (*container.command, *container.args))
