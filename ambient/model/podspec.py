"""What a pod is to run: containers, ports, probes, and where it would like to be.

Floor 0: from a Pod, or the template of a Deployment. Images, volumes, resources and security contexts
are not in it: workloads are processes of this machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any

from ambient.errors import ConfigError
from ambient.model.exclusions import exclusions_of
from ambient.model.objects import FieldError, Object, Path, selects

DEFAULT_SERVICE_ACCOUNT = "default"
HOSTNAME_LABEL = "kubernetes.io/hostname"

_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_][A-Za-z0-9_.-]*)\)")


class ProbeKind(Enum):
    """How a probe asks."""

    HTTP = "http"
    TCP = "tcp"
    EXEC = "exec"


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """One probe; times and thresholds default as in Kubernetes.

    Attributes:
        port: The number, also where the manifest names a port; 0 for EXEC.
        path: For HTTP, for example ``"/healthz"``.
        scheme: ``"http"`` or ``"https"``.
        headers: For HTTP, (name, value) pairs.
        command: For EXEC.
    """

    kind: ProbeKind
    port: int = 0
    path: str = "/"
    scheme: str = "http"
    headers: tuple[tuple[str, str], ...] = ()
    command: tuple[str, ...] = ()
    initial_delay: float = 0.0
    period: float = 10.0
    timeout: float = 1.0
    success_threshold: int = 1
    failure_threshold: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPort:
    """A TCP port that the container says it listens on."""

    number: int
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvVar:
    """One variable. *field_path* (``"status.podIP"``) is set where the downward API gives the value."""

    name: str
    value: str = ""
    field_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """One container; without *command* it is the built-in HTTP workload."""

    name: str
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    ports: tuple[ContainerPort, ...] = ()
    working_dir: str = ""
    readiness: Probe | None = None
    liveness: Probe | None = None
    startup: Probe | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PodSpec:
    """What one pod runs.

    Attributes:
        nodes: Names of the nodes it would like, best first; a wish, not a condition.
        termination_grace_seconds: From SIGTERM to SIGKILL.
    """

    containers: tuple[Container, ...]
    service_account: str = DEFAULT_SERVICE_ACCOUNT
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    annotations: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    host_network: bool = False
    nodes: tuple[str, ...] = ()
    termination_grace_seconds: int = 30

    def port(self, name: str) -> int:
        """The number of the named port, or 0."""
        return next((p.number for each in self.containers for p in each.ports if p.name == name), 0)


def pod_spec(obj: Object) -> PodSpec:
    """Read the pod that *obj*, a Pod or a Deployment, describes.

    Raises:
        ConfigError: its parts do not fit together (unknown named port, selector that misses).
    """
    try:
        return _read(obj)
    except FieldError as exc:
        raise obj.error(str(exc)) from exc


def check_pod(obj: Object) -> None:
    """Check that the parts of a Pod or a Deployment fit together.

    Raises:
        FieldError: they do not.
    """
    spec = _read(obj)
    if obj.kind == "Deployment" and not selects(obj.spec["selector"], spec.labels):
        raise FieldError(("spec", "selector"), "does not select the labels of spec.template")


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` as Kubernetes does in command and args; ``$$(NAME)`` stays ``$(NAME)``."""

    def value(match: re.Match[str]) -> str:
        if match.group() == "$$":
            return "$"
        return env.get(match.group(1), match.group())

    return _REFERENCE.sub(value, text)


def _read(obj: Object) -> PodSpec:
    template: Mapping[str, Any] = obj.body
    path: Path = ()
    if obj.kind == "Deployment":
        template, path = obj.spec["template"], ("spec", "template")
    spec, metadata = template["spec"], template.get("metadata") or {}
    here: Path = (*path, "spec", "containers")
    if not spec["containers"]:
        raise FieldError(here, "is empty")
    return PodSpec(
        containers=tuple(_container(each, (*here, index)) for index, each in enumerate(spec["containers"])),
        service_account=spec.get("serviceAccountName")
        or spec.get("serviceAccount")
        or DEFAULT_SERVICE_ACCOUNT,
        labels=metadata.get("labels") or {},
        annotations=_annotations(metadata, (*path, "metadata", "annotations")),
        host_network=spec.get("hostNetwork", False),
        nodes=tuple(dict.fromkeys(_nodes(spec))),
        termination_grace_seconds=spec.get("terminationGracePeriodSeconds", 30),
    )


def _annotations(metadata: Mapping[str, Any], path: Path) -> Mapping[str, str]:
    found: Mapping[str, str] = metadata.get("annotations") or {}
    try:
        exclusions_of(found)
    except ConfigError as exc:
        raise FieldError(path, str(exc)) from exc
    return found


def _container(body: Mapping[str, Any], path: Path) -> Container:
    declared = body.get("ports") or ()
    ports = tuple(
        ContainerPort(number=each["containerPort"], name=each.get("name", ""))
        for each in declared
        if each.get("protocol", "TCP") == "TCP"
    )
    names = {port.name: port.number for port in ports if port.name}
    probes = {
        name: _probe(body[f"{name}Probe"], names, (*path, f"{name}Probe")) if f"{name}Probe" in body else None
        for name in ("readiness", "liveness", "startup")
    }
    return Container(
        name=body["name"],
        command=tuple(body.get("command") or ()),
        args=tuple(body.get("args") or ()),
        env=tuple(_variable(each) for each in body.get("env") or ()),
        ports=ports,
        working_dir=body.get("workingDir", ""),
        **probes,
    )


def _variable(body: Mapping[str, Any]) -> EnvVar:
    source = (body.get("valueFrom") or {}).get("fieldRef") or {}
    return EnvVar(name=body["name"], value=body.get("value", ""), field_path=source.get("fieldPath", ""))


def _probe(body: Mapping[str, Any], names: Mapping[str, int], path: Path) -> Probe | None:
    asked = [how for how in ("httpGet", "tcpSocket", "exec") if how in body]
    if not asked:
        return None  # Empty, or gRPC, which is listed as not used.
    if len(asked) > 1:
        raise FieldError(path, f"asks in several ways: {', '.join(asked)}")
    how = body[asked[0]]
    # Kubernetes takes a zero for "not set" in all but the initial delay.
    times: dict[str, Any] = {
        "initial_delay": float(body.get("initialDelaySeconds", 0)),
        "period": float(body.get("periodSeconds") or 10),
        "timeout": float(body.get("timeoutSeconds") or 1),
        "success_threshold": body.get("successThreshold") or 1,
        "failure_threshold": body.get("failureThreshold") or 3,
    }
    if asked[0] == "exec":
        return Probe(kind=ProbeKind.EXEC, command=tuple(how["command"]), **times)
    port = how["port"] if isinstance(how["port"], int) else names.get(how["port"], 0)
    if not port:
        raise FieldError((*path, asked[0], "port"), f"the container has no port named {how['port']!r}")
    if asked[0] == "tcpSocket":
        return Probe(kind=ProbeKind.TCP, port=port, **times)
    return Probe(
        kind=ProbeKind.HTTP,
        port=port,
        path=how.get("path") or "/",
        scheme=how.get("scheme", "HTTP").lower(),
        headers=tuple((each["name"], each.get("value", "")) for each in how.get("httpHeaders") or ()),
        **times,
    )


def _nodes(spec: Mapping[str, Any]) -> Iterator[str]:
    """Every node that the specification names, the strongest wish first."""
    if spec.get("nodeName"):
        yield spec["nodeName"]
    if HOSTNAME_LABEL in (spec.get("nodeSelector") or {}):
        yield spec["nodeSelector"][HOSTNAME_LABEL]
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}
    for term in required.get("nodeSelectorTerms") or ():
        yield from _hostnames(term)
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    for each in sorted(preferred, key=lambda each: -each["weight"]):
        yield from _hostnames(each["preference"])


def _hostnames(term: Mapping[str, Any]) -> Iterator[str]:
    for expression in term.get("matchExpressions") or ():
        if expression["key"] == HOSTNAME_LABEL and expression["operator"] == "In":
            yield from expression.get("values") or ()
