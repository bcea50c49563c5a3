"""What a pod is to run: containers, ports, probes, and where it would like to be.

Floor 0: from a Pod, or the template of a Deployment. Images, volumes, resources and security contexts
are not in it: workloads are processes of this machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from ambient.model.objects import Object

DEFAULT_SERVICE_ACCOUNT = "default"
HOSTNAME_LABEL = "kubernetes.io/hostname"


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
        ConfigError: its parts do not fit together (two containers of one name, unknown named port).
    """
    raise NotImplementedError


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` as Kubernetes does in command and args; ``$$(NAME)`` stays ``$(NAME)``."""
    raise NotImplementedError
