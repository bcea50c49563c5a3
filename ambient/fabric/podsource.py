"""What control says about a pod, read from the fabric wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ambient.errors import RemoteProtocolError
from ambient.model.podspec import Container, ContainerPort, EnvVar, PodSpec, Probe, ProbeKind


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOrder:
    """A pod that is to run.

    Attributes:
        mode: ``"sidecar"`` puts a proxy beside it; everything else is none of ours.
        engine: Whose proxy, ``"ambient"`` or ``"envoy"``.
        role: ``"app"`` or ``"waypoint"``.
    """

    uid: str
    namespace: str
    name: str
    node: str
    addresses: tuple[str, ...]
    mode: str
    engine: str
    role: str
    spec: PodSpec

    @property
    def full_name(self) -> str:
        """``namespace/name``."""
        return f"{self.namespace}/{self.name}"

    @property
    def file_name(self) -> str:
        """A name for files of its own."""
        return f"{self.namespace}_{self.name}"


def read_order(body: Mapping[str, Any]) -> PodOrder:
    """Read the ``pod`` of an ``add`` event.

    Raises:
        RemoteProtocolError: something is missing or of the wrong type.
    """
    try:
        return PodOrder(
            uid=body["uid"],
            namespace=body["namespace"],
            name=body["name"],
            node=body["node"],
            addresses=tuple(body["addresses"]),
            mode=str(body.get("mode", "none")).lower(),
            engine=body.get("engine", "ambient"),
            role=body.get("role", "app"),
            spec=read_spec(body["spec"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise RemoteProtocolError(f"pod order: {type(exc).__name__} {exc}") from exc


def read_spec(body: Mapping[str, Any]) -> PodSpec:
    """Read a ``PodSpec`` back from its fields."""
    return PodSpec(
        containers=tuple(_container(each) for each in body["containers"]),
        service_account=body.get("service_account", "default"),
        labels=dict(body.get("labels", {})),
        annotations=dict(body.get("annotations", {})),
        host_network=bool(body.get("host_network", False)),
        termination_grace_seconds=int(body.get("termination_grace_seconds", 30)),
    )


def _container(body: Mapping[str, Any]) -> Container:
    return Container(
        name=body["name"],
        command=tuple(body.get("command", ())),
        args=tuple(body.get("args", ())),
        env=tuple(EnvVar(**each) for each in body.get("env", ())),
        ports=tuple(ContainerPort(**each) for each in body.get("ports", ())),
        working_dir=body.get("working_dir", ""),
        readiness=_probe(body.get("readiness")),
        liveness=_probe(body.get("liveness")),
        startup=_probe(body.get("startup")),
    )


def _probe(body: Mapping[str, Any] | None) -> Probe | None:
    if body is None:
        return None
    values = dict(body)
    headers = tuple((name, value) for name, value in values.pop("headers", ()))
    command = tuple(values.pop("command", ()))
    return Probe(**{**values, "kind": ProbeKind(values["kind"])}, headers=headers, command=command)
